//! What the codes of errors mean that are met when a composition is carried out. Those of the language have pages of their
//! own, with examples ([`containust_lang::explain`]).

/// Code, what it means, and the way out. An error's own help is about its case; this is about all of them.
const PAGES: &[(&str, &str, &str)] = &[
    ("I001", "the kernel refused a call on a file of an image", "see the path and the kernel's word in the message"),
    ("I002", "no space or quota is left where images are kept", "make room, for example with ctst images prune"),
    ("I003", "the directory of a file:// image does not exist", "create it or correct the path"),
    ("I004", "the source of a file:// image is no directory", "name a directory; archives are tar://"),
    ("I005", "a path that must be absolute is not", "write it from / on"),
    ("I006", "files of an image's source may not be read", "own them, or have their owner allow it"),
    ("I007", "an image's source changed while it was imported", "try again when nothing writes to it"),
    ("I008", "an image is not the pinned one", "if its new content is wanted, pin the new digest"),
    ("I009", "a pin is no SHA-256 digest", "write the digest that ctst images verify or ls shows"),
    ("I010", "the folder of images is not the caller's alone", "make it private: chown and chmod 700"),
    ("I011", "a newer ctst wrote the image's record", "use that one"),
    ("I012", "a file's owner does not fit into the container's ids", "give yourself a larger range: ctst doctor"),
    ("I013", "only root may give files away", "run as root, or keep the caller's ownership"),
    ("I014", "a range of ids is empty or too high", "name one that ends below 4294967295"),
    ("I015", "an image's source is larger than can be handled", "make it smaller"),
    ("I016", "an image's source contains the image store", "keep the root file system in a folder of its own"),
    ("I020", "host:// names no program", "name one by its absolute path"),
    ("I021", "a program of a host:// image cannot be used", "name one that is installed"),
    ("I022", "a library that a program needs is not on this host", "install the package that has it"),
    ("I023", "a program is damaged or of an unknown kind", "install it anew"),
    ("I024", "an include pattern cannot be used", "write an absolute one that matches files"),
    ("I030", "the file of a tar:// image does not exist", "create it or correct the path"),
    ("I031", "an archive is damaged or of an unknown kind", "make or fetch it again"),
    ("I032", "an entry of an archive is refused", "make the archive with tar, docker save or an OCI tool"),
    ("I033", "an archive unpacks to more than is allowed", "if you trust it, unpack it yourself and use file://"),
    (
        "I034",
        "a part of an archive is not what its digest says",
        "fetch it again; if that does not help, do not trust it",
    ),
    ("I035", "an archive has no image for this machine", "save one for this machine"),
    ("I036", "an archive has several images", "save one alone"),
    ("I037", "nothing unpacks with these owners here", "use the caller's ownership"),
    ("I040", "what unpacks images failed", "see the message"),
    ("I041", "the store has no image of this name", "ctst images ls shows what is there; ctst images import adds one"),
    ("I042", "an image of the store is not what was imported", "remove it and import it again"),
    ("I043", "an image is there for other ids than containers have now", "import it again"),
    ("I044", "several images begin like this", "write more of the name or digest"),
    ("I045", "no image can have this name", "write letters, digits and ._-/, and a tag after :"),
    ("I046", "what is imported brings no name", "give one: ctst images import FILE NAME"),
    (
        "I047",
        "no container can read from this archive before it is unpacked",
        "remove `lazy = true`, or make it a plain tar",
    ),
    ("I048", "the index of a lazy image is not the one that was made", "make it anew: ctst images prune, and ctst run"),
    ("I049", "the store has an index of the image only", "take the archive itself, or import it"),
    ("I050", "a registry is not reached, or does not go on", "see whether its name is right and the host is reached"),
    ("I051", "a registry wants to know who asks", "log in: ctst login REGISTRY"),
    ("I052", "a registry forbids what was asked", "ask for access, or log in as who has it"),
    ("I053", "a registry has no such image", "correct its name, tag or digest"),
    ("I054", "what a registry sends is not what it should be", "tell whoever keeps it; do not trust it"),
    ("I055", "a registry is busy, or fails", "try again later"),
    ("I056", "an image would have to be pulled, and nothing is fetched offline", "pull it before: ctst pull"),
    ("I057", "registries.toml, or what it names, is not understood", "correct it as the message says"),
    ("I058", "credentials cannot be stored or removed", "see to the file or the helper that the message names"),
    ("I059", "a file cannot be copied into an image that is built", "see the path and the reason in the message"),
    ("I060", "a bundle is damaged, or not what ctst bundle writes", "copy it again from where it was made"),
    ("I061", "a newer ctst made the bundle", "use that one"),
    ("I062", "a bundle is not the one that was meant", "do not run it; ask who made it for its digest"),
    ("I063", "something cannot be put into a bundle", "see the message"),
    ("I064", "an archive is not unpacked in the background, for want of room", "make room, or say `lazy = \"always\"`"),
    ("I065", "it cannot be said what the program of a stripped image needs", "name what the message wants in `keep`"),
    ("I066", "nothing is removed from a store while something is imported, built or unpacked", "try again afterwards"),
    ("S0101", "the kernel refused a call", "see what was tried, and its word, in the message"),
    ("S0102", "the folder has no .ctst file", "name one: ctst -f FILE"),
    ("S0103", "the folder has several .ctst files", "name one: ctst -f FILE"),
    ("S0104", "a file is longer than anybody would write", "make it shorter"),
    (
        "S0105",
        "others own or can change what a project is kept in",
        "make it yours alone (chown, chmod 700), or remove what is a stranger's",
    ),
    ("S0106", "a newer ctst wrote the project's state", "use that one"),
    ("S0107", "the record of a container is missing or damaged", "the next ctst run makes the container anew"),
    ("S0108", "containust.lock is not what ctst lock writes", "restore it, or remove it and run ctst lock"),
    (
        "S0109",
        "a link leads out of a folder that a component can write",
        "see who made it; if it is meant, name what it leads to",
    ),
    ("S0110", "this is only done with bundles, or not with them", "name another file"),
    ("S0201", "components wait for each other in a circle", "take one CONNECT out of it"),
    ("S0202", "there is no component of this name", "see the names in the message"),
    ("S0203", "a component cannot be as it is asked for", "see the message"),
    ("S0204", "a host path of a component cannot be opened", "create it, or correct the path"),
    ("S0205", "a component's image cannot be had", "see the message"),
    ("S0206", "there is no volume of this name", "ctst volumes shows what is there"),
    ("S0207", "a container has the volume that is to be removed", "stop and rm it first"),
    ("S0208", "a container was made of the image that is to be removed", "stop and rm it first"),
    ("S0209", "a file has errors, so that it is not known what images it names", "ctst check shows them"),
    ("S0210", "secrets cannot be had", "put each into .containust/secrets/NAME, readable by you alone"),
    ("S0211", "an image cannot be built as its Dockerfile says", "see the line in the message"),
    ("S0212", "a step of a build failed", "see what it wrote last in the message; ctst build shows all of it"),
    (
        "S0213",
        "an image cannot be stripped to what its program needs",
        "name what is missing in `keep`, as the message says",
    ),
    ("S0301", "nothing runs that could be asked", "start it: ctst run -d"),
    ("S0302", "another version of ctst runs the project", "stop it with that one, then run it again"),
    ("S0303", "what a project's supervisor says is not understood", "stop the project and run it again"),
    ("S0304", "the project's supervisor ended", "see its log, then run the project again"),
    ("S0401", "ctst-shim is not installed", "put it beside ctst"),
    ("S0402", "a container could not be made", "ctst doctor says what this host lacks"),
    ("S0403", "a container's program cannot be executed", "chmod +x it in the image, and see to its interpreter"),
    ("S0404", "a container's program is not in its image", "correct the command, or put it into the image"),
    (
        "S0405",
        "a container's program could not be started",
        "see the step that failed in the message, such as its user",
    ),
    ("S0406", "this host allows no namespaces", "ctst doctor names the setting"),
    ("S0407", "a limit cannot hold on this host", "ctst doctor says what gives it; or limits = \"best-effort\""),
    ("S0408", "systemd made no scope for the project", "systemctl --user status says why"),
    ("S0409", "the host's policy cannot be read, or others than root may write it", "mend it as the message says"),
    (
        "S0410",
        "the host's policy forbids something",
        "do without, or have the administrator add the line in the message",
    ),
    (
        "S0411",
        "a network has a way out, and passt is not there or does not work here",
        "apt install passt, or --offline",
    ),
    ("S0412", "this host hides the processes of containers", "mount /proc without hidepid"),
    ("S0413", "a network has IPv6, and this kernel has none", "boot without ipv6.disable=1, or leave `ipv6` out"),
    (
        "S0501",
        "a port cannot be published",
        "free it, or publish another; of one below 1024 the message says who may give it",
    ),
    ("S0503", "what a component waits for did not come up", "see that one first: ctst logs"),
    ("S0504", "a component ended or stayed unhealthy while it was waited for", "ctst logs shows why"),
    ("S0505", "something could not be removed", "see the message; ctst rm tries again"),
    ("S0506", "a container needed more memory than it may have", "raise its memory, or see what it did: ctst logs"),
    ("S0601", "several components cannot be had", "each is named in the message with its own code"),
    ("S0602", "files in writable layers would be lost", "copy them out with ctst cp, then --allow-destroy"),
    ("S0603", "a file is no plan, or none that can be carried out", "plan again: ctst plan -o FILE"),
    ("S0604", "what a plan was made from has changed", "plan again: ctst plan -o FILE"),
];

/// What a code such as `S0210` or `I031` means and the way out, upper case or lower; `None` if there is no such code.
#[must_use]
pub fn explain(code: &str) -> Option<String> {
    let (code, title, way) = PAGES.iter().find(|(known, ..)| known.eq_ignore_ascii_case(code.trim()))?;
    Some(format!("{code}: {title}\n\n{way}\n"))
}

/// Every such code and what it means, in the order of the codes.
pub fn titles() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGES.iter().map(|(code, title, _)| (*code, *title))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Strings in quotes that are an S or an I and digits.
    fn mentioned(folder: &Path, codes: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                mentioned(&entry.path(), codes);
            } else if entry.file_name() != "codes.rs" {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let is_code = |word: &&str| {
                    let digits = word.strip_prefix(['S', 'I']).unwrap_or_default();
                    matches!(digits.len(), 3 | 4) && digits.bytes().all(|b| b.is_ascii_digit())
                };
                codes.extend(text.split('"').filter(is_code).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_code_that_is_given_has_a_page_and_no_other() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut codes = BTreeSet::new();
        for folder in ["src", "../src", "../image/src"] {
            mentioned(&here.join(folder), &mut codes);
        }
        assert!(codes.contains("S0407") && codes.contains("I040"), "{codes:?}");
        assert_eq!(
            titles().map(|(code, _)| code.to_owned()).collect::<Vec<_>>(),
            codes.into_iter().collect::<Vec<_>>()
        );
        assert_eq!(explain("s0301").unwrap(), "S0301: nothing runs that could be asked\n\nstart it: ctst run -d\n");
        assert_eq!(explain("S9999"), None);
    }
}
