//! Imports one archive into a store, for `time` and comparisons with `tar`: `import ARCHIVE STORE`.

use std::path::PathBuf;
use std::time::Instant;

use containust_image::model::Ownership;
use containust_image::{Request, Source, Store};

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(archive), Some(store)) = (arguments.next(), arguments.next()) else {
        eprintln!("import ARCHIVE STORE");
        std::process::exit(2);
    };
    let request = Request { source: Source::Tar(archive), ownership: Ownership::Caller, pin: None };
    let start = Instant::now();
    match Store::at(&store).import(&request, &mut |_| {}) {
        Ok(image) => println!("{} {} bytes in {:?}; {:?}", image.digest, image.size, start.elapsed(), image.notes),
        Err(error) => {
            eprintln!("{} {error}", error.code());
            std::process::exit(1);
        }
    }
}
