//! Files and links as they are made, so that nobody has to look for them in the tree afterwards.

use std::collections::HashMap;

use rustix::fs::FileType;

use crate::tree::{Body, Item, Meta};

/// All files and symbolic links of a layer. Only of one in which every name was made once: of any other the tree itself has
/// to be asked, because file systems differ in which names they take for the same.
#[derive(Default)]
pub(super) struct Listing {
    items: Vec<Item>,
    /// Files by their inode number.
    files: HashMap<u64, usize>,
}

impl Listing {
    pub(super) fn file(&mut self, path: &[u8], meta: Meta) {
        self.files.insert(meta.ino, self.items.len());
        self.items.push(Item { path: path.into(), meta, body: Body::File });
    }

    pub(super) fn symlink(&mut self, path: &[u8], (uid, gid): (u32, u32), target: &[u8]) {
        let meta = Meta { uid, gid, ..Meta::made(FileType::Symlink, 0o777, target.len()) };
        self.items.push(Item { path: path.into(), meta, body: Body::Made(target.into()) });
    }

    /// Another name of the file with this inode number; false where none of the files has it.
    pub(super) fn hard_link(&mut self, path: &[u8], inode: u64) -> bool {
        let Some(first) = self.files.get(&inode) else { return false };
        let meta = &mut self.items[*first].meta;
        meta.nlink += 1;
        let meta = *meta;
        self.items.push(Item { path: path.into(), meta, body: Body::File });
        true
    }

    /// Everything, in the order in which it was made.
    pub(super) fn into_items(self) -> Vec<Item> {
        self.items
    }
}
