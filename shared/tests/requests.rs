//! What the shim may be asked, as text beside the code, so that a new request, or a new part of one, is a visible diff. It is
//! made of the types themselves: of each variant the message that decodes from zeros alone.

use std::fmt::Debug;
use std::{env, fs, path::Path};

use containust_shared::port::ToPort;
use containust_shared::protocol::{Mapped, ToContainer, ToSandbox, ToShim};
use containust_shared::wire::{Message, decode, encode};

/// Larger than the smallest message of any kind.
const ENOUGH: usize = 4096;

/// The smallest message whose first number is `first`.
fn smallest<T: Message>(first: u32) -> Option<T> {
    let mut bytes = first.to_le_bytes().to_vec();
    bytes.resize(ENOUGH, 0);
    (4..ENOUGH).find_map(|length| decode(&bytes[..length]).ok())
}

struct Request {
    reader: &'static str,
    name: String,
    text: String,
}

fn request<T: Message + Debug>(reader: &'static str, message: &T) -> Request {
    let shape = format!("{message:#?}");
    let name = shape.split([' ', '(']).next().expect("a name").to_owned();
    let size = encode(message).expect("it was decoded").len();
    Request { reader, text: format!("{reader} reads {name}, of {size} bytes at least:\n{shape}\n\n"), name }
}

fn all<T: Message + Debug>(reader: &'static str) -> Vec<Request> {
    (0..).map_while(smallest::<T>).map(|message| request(reader, &message)).collect()
}

fn requests() -> Vec<Request> {
    let mapped: Mapped = smallest(0).expect("a message of zeros");
    let mut requests = all::<ToShim>("P");
    requests.push(request("P", &mapped));
    requests.extend(all::<ToSandbox>("S"));
    requests.extend(all::<ToContainer>("C"));
    requests.extend(all::<ToPort>("ctst-port"));
    requests
}

#[test]
fn snapshot() {
    let text: String = requests().into_iter().map(|request| request.text).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots/requests.txt");
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
        fs::write(&path, &text).expect("the snapshot can be written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).find(|(old, new)| old != new);
    assert!(
        kept == text,
        "shared/snapshots/requests.txt differs from the types, first here: {differs:?}; if the change is meant, run \
         `make snapshots` and commit the file"
    );
}

/// The guide's table has these requests, with these readers, and no others.
#[test]
fn the_guide_lists_them() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ctst-shim/README.md");
    let guide = fs::read_to_string(guide).expect("read ctst-shim/README.md");
    let section = guide.split("## The request table").nth(1).expect("a section on requests");
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let mut listed: Vec<(String, String)> = Vec::new();
    for row in rows.skip(2) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 7, "{row}");
        assert!(cells.iter().skip(1).take(5).all(|cell| !cell.is_empty()), "{row}");
        for reader in cells[2].split(", ") {
            listed.push((reader.to_owned(), cells[1].trim_matches('`').to_owned()));
        }
    }
    let mut real: Vec<_> = requests().into_iter().map(|request| (request.reader.to_owned(), request.name)).collect();
    listed.sort();
    real.sort();
    assert_eq!(listed, real);
}
