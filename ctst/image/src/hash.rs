//! By what function the store tells whether a tree is still the one that was imported.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::source::{hex, is_digest};
use crate::tree::Digest;

/// A hash function for contents and trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// FIPS 180-4. Of trees whose digest is the image's own, which users pin.
    Sha256,
    /// Some four times as fast. Of layers of archives, where users pin the archive and only the store knows the tree's.
    Blake3,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Blake3 => "blake3",
        }
    }

    /// A tree's digest as records have it: the algorithm's name, `:` and 64 hexadecimal digits.
    pub(crate) fn text(self, digest: &Digest) -> String {
        format!("{}:{}", self.name(), hex(digest))
    }

    /// What computed the digest of which this is the [`text`](Algorithm::text).
    pub(crate) fn of(text: &str) -> Option<Algorithm> {
        let (name, digits) = text.split_once(':')?;
        let known = [Algorithm::Sha256, Algorithm::Blake3];
        known.into_iter().find(|algorithm| algorithm.name() == name && is_digest(digits))
    }

    pub(crate) fn start(self) -> Hash {
        match self {
            Algorithm::Sha256 => Hash::Sha256(Sha256::new()),
            Algorithm::Blake3 => Hash::Blake3(Box::default()),
        }
    }
}

/// A hash that is being computed.
pub(crate) enum Hash {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hash {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Blake3(hash) => drop(hash.update(bytes)),
        }
    }

    /// Of `count` zeros, which a hole stands for.
    pub(crate) fn update_zeros(&mut self, mut count: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while count > 0 {
            let now = count.min(ZEROS.len() as u64);
            self.update(&ZEROS[..now as usize]);
            count -= now;
        }
    }

    /// The digest; what is hashed from now on begins anew.
    pub(crate) fn take(&mut self) -> Digest {
        match self {
            Hash::Sha256(hash) => hash.finalize_reset().into(),
            Hash::Blake3(hash) => {
                let digest = *hash.finalize().as_bytes();
                hash.reset();
                digest
            }
        }
    }
}
