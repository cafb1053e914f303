//! Reads the tar format: ustar, GNU and PAX, and exactly one meaning for every byte. Where the parts of an archive
//! contradict each other, so that two programs could see different files in it, it is refused.

use std::path::{Path, PathBuf};

use ::tar::{EntryType, GnuExtSparseHeader, Header};

use super::Limits;
use super::stream::{Chunk, Input, Stream};
use crate::Error;
use crate::tree::{MAX_PATH, Time, join};

const BLOCK: u64 = 512;
/// Largest extended header; a name has 4 KiB, an attribute 64.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most stretches of data in a sparse file.
const MAX_STRETCHES: usize = 1 << 20;
/// Largest size that the header's octal digits can tell.
const MAX_OCTAL_SIZE: u64 = 0o777_7777_7777;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    /// The same file as an earlier one, which the link names.
    Hard,
    Fifo,
    Character,
    Block,
}

/// One entry. Its content is read by [`Tar::data`].
#[derive(Debug)]
pub(crate) struct Entry {
    /// As it is in the archive: not empty, at most 4095 bytes, no NUL; nothing else is checked.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Of a file; holes included.
    pub(crate) size: u64,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Attributes of a kind that is not an extended attribute, such as `SCHILY.acl.access`.
    pub(crate) lost: Vec<Vec<u8>>,
    /// Where the data is, if there are holes: offset and length, in order, without overlap.
    pub(crate) stretches: Option<Vec<(u64, u64)>>,
}

/// A tar stream.
pub(crate) struct Tar<'a, I> {
    stream: Stream<I>,
    archive: &'a Path,
    limits: &'a Limits,
    /// Bytes of the current entry that were not read, and of the padding after them.
    left: u64,
    padding: u64,
    entries: u64,
    /// Its name, for messages.
    current: Vec<u8>,
}

/// The content of a tar stream's current entry.
pub(crate) struct Current<'t, 'a, I>(pub(crate) &'t mut Tar<'a, I>);

impl<I: Input> Input for Current<'_, '_, I> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        self.0.data(u64::MAX)
    }

    fn skip(&mut self, count: u64) -> u64 {
        self.0.pass_data(count)
    }
}

/// Keyword and value of an extended header.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Extended headers before an entry.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    lost: Vec<Vec<u8>>,
    sparse_version: (Option<u64>, Option<u64>),
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
}

impl<'a, I: Input> Tar<'a, I> {
    pub(crate) fn new(input: I, archive: &'a Path, limits: &'a Limits) -> Self {
        let stream = Stream::new(input);
        Tar { stream, archive, limits, left: 0, padding: 0, entries: 0, current: Vec::new() }
    }

    /// Where in the stream the rest of the current entry's content begins.
    pub(crate) fn position(&self) -> u64 {
        self.stream.position()
    }

    /// How many entries were seen.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// The next entry; `None` after the last, when everything up to the end of the stream was seen.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.pass()?;
        let mut extensions = Extensions::default();
        let mut any = false;
        loop {
            let Some(block) = self.header()? else {
                return match any {
                    true => Err(self.damaged("ends after an extended header, where an entry must follow")),
                    false => Ok(None),
                };
            };
            let header = Header::from_byte_slice(&block);
            self.check_sum(header)?;
            // Until the entry has its own, messages name the header's.
            self.current = header.path_bytes().into_owned();
            let size = self.size(header)?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    let name = self.long(size)?;
                    self.once(&mut extensions.long_name, name, "two long names")?;
                }
                EntryType::GNULongLink => {
                    let name = self.long(size)?;
                    self.once(&mut extensions.long_link, name, "two long link targets")?;
                }
                EntryType::XHeader => {
                    let pax = self.extension(size)?;
                    let pax = self.pax(&pax)?;
                    self.once(&mut extensions.pax, pax, "two extended headers")?;
                }
                EntryType::XGlobalHeader => {
                    let pax = self.extension(size)?;
                    self.global(&pax)?;
                    continue;
                }
                kind => return self.entry(header, kind, size, extensions).map(Some),
            }
            any = true;
        }
    }

    pub(crate) fn into_input(self) -> I {
        self.stream.into_input()
    }

    /// Up to `max` of the next bytes of the current entry's content; `None` after the last.
    pub(crate) fn data(&mut self, max: u64) -> Result<Option<Chunk>, Error> {
        let piece = self.stream.piece(self.left.min(max))?;
        if piece.is_empty() && self.left > 0 {
            return Err(self.truncated());
        }
        self.left -= piece.len() as u64;
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// Up to `max` bytes of the current entry's content.
    pub(crate) fn read(&mut self, max: u64) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        while (out.len() as u64) < max {
            let piece = self.stream.piece(self.left.min(max - out.len() as u64))?;
            if piece.is_empty() {
                break;
            }
            self.left -= piece.len() as u64;
            out.extend_from_slice(&piece);
        }
        match self.left > 0 && (out.len() as u64) < max {
            true => Err(self.truncated()),
            false => Ok(out),
        }
    }

    /// Passes over up to `count` bytes of the current entry's content without reading any; returns how many.
    pub(crate) fn pass_data(&mut self, count: u64) -> u64 {
        let passed = self.stream.pass(count.min(self.left));
        self.left -= passed;
        passed
    }

    /// Passes over what is left of the current entry.
    fn pass(&mut self) -> Result<(), Error> {
        let count = self.left + self.padding;
        if self.stream.skip(count)? < count {
            return Err(self.truncated());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// A header block; `None` after the end marker.
    fn header(&mut self) -> Result<Option<[u8; BLOCK as usize]>, Error> {
        self.pass()?;
        let mut block = [0; BLOCK as usize];
        match self.stream.fill(&mut block)? {
            0 => return Err(self.damaged("ends without its end marker: it is not whole")),
            512 => {}
            _ => return Err(self.damaged("ends in the middle of a header: it is not whole")),
        }
        if block.iter().any(|b| *b != 0) {
            self.entries += 1;
            if self.entries > self.limits.entries {
                let what = format!("has more than {} entries", self.limits.entries);
                return Err(Error::TooLarge { archive: self.archive.into(), entry: None, what });
            }
            return Ok(Some(block));
        }
        loop {
            let piece = self.stream.piece(u64::MAX)?;
            if piece.is_empty() {
                return Ok(None);
            }
            if piece.iter().any(|b| *b != 0) {
                return Err(self.damaged("holds data after its end marker"));
            }
        }
    }

    fn check_sum(&self, header: &Header) -> Result<(), Error> {
        let old = header.as_old();
        let bytes = header.as_bytes();
        let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
        let own: u64 = old.cksum.iter().map(|b| u64::from(*b)).sum();
        let expected = number(&old.cksum).and_then(|sum| u64::try_from(sum).ok());
        match expected == Some(sum - own + 8 * u64::from(b' ')) {
            true => Ok(()),
            false if self.entries == 1 => {
                Err(self.damaged("is not a tar archive: its first header has no valid checksum"))
            }
            false => {
                let after = crate::error::text(&String::from_utf8_lossy(&self.current));
                Err(self.damaged(&format!("is damaged: the header after `{after}` has a wrong checksum")))
            }
        }
    }

    fn size(&self, header: &Header) -> Result<u64, Error> {
        let size = number(&header.as_old().size);
        size.and_then(|size| i64::try_from(size).ok())
            .and_then(|size| u64::try_from(size).ok())
            .ok_or_else(|| self.refused("has a size that is negative, too large or not a number"))
    }

    /// Reads the content of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENSION {
            return Err(self.refused(&format!("has an extended header of {size} bytes, {MAX_EXTENSION} are the most")));
        }
        self.expect(size);
        self.read(size)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK;
    }

    /// A GNU long name: text with a NUL at its end.
    fn long(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut name = self.extension(size)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn once<T>(&self, place: &mut Option<T>, value: T, what: &str) -> Result<(), Error> {
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.refused(&format!("has {what}"))),
        }
    }

    /// Records of an extended header: length, space, keyword, `=`, value, newline.
    fn records<'b>(&self, bytes: &'b [u8]) -> Result<Vec<Record<'b>>, Error> {
        let bad = || self.refused("has a malformed extended header");
        let mut records = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = rest.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
            let length = digits(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
            let record = rest.get(space + 1..length).ok_or_else(bad)?;
            rest = &rest[length..];
            let (b'\n', record) = record.split_last().ok_or_else(bad)? else { return Err(bad()) };
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            records.push((&record[..equals], &record[equals + 1..]));
        }
        Ok(records)
    }

    /// A global header may say things about the archive, not about its entries: which of several would count is read
    /// differently by different programs.
    fn global(&self, bytes: &[u8]) -> Result<(), Error> {
        let records = self.records(bytes)?;
        let harmless = |key: &[u8]| {
            key == b"comment" || (key.contains(&b'.') && !key.starts_with(b"GNU.") && !key.starts_with(b"SCHILY."))
        };
        match records.iter().find(|(key, _)| !harmless(key)) {
            None => Ok(()),
            Some((key, _)) => Err(self.refused(&format!(
                "sets `{}` for all entries that follow",
                crate::error::text(&String::from_utf8_lossy(key))
            ))),
        }
    }

    fn pax(&self, bytes: &[u8]) -> Result<Pax, Error> {
        let records = self.records(bytes)?;
        let mut keys: Vec<&[u8]> = records.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(
                self.refused(&format!("sets `{}` twice", crate::error::text(&String::from_utf8_lossy(twice[0]))))
            );
        }
        let mut pax = Pax::default();
        for (key, value) in records {
            let bad = || {
                let key = crate::error::text(&String::from_utf8_lossy(key));
                self.refused(&format!("has an extended header with a bad `{key}`"))
            };
            let id = || digits(value).and_then(|id| u32::try_from(id).ok()).ok_or_else(bad);
            match key {
                b"path" => pax.path = Some(value.into()),
                b"linkpath" => pax.link = Some(value.into()),
                b"size" => pax.size = Some(digits(value).ok_or_else(bad)?),
                b"uid" => pax.uid = Some(id()?),
                b"gid" => pax.gid = Some(id()?),
                b"mtime" => pax.mtime = Some(time(value).ok_or_else(bad)?),
                b"GNU.sparse.major" => pax.sparse_version.0 = Some(digits(value).ok_or_else(bad)?),
                b"GNU.sparse.minor" => pax.sparse_version.1 = Some(digits(value).ok_or_else(bad)?),
                b"GNU.sparse.name" => pax.sparse_name = Some(value.into()),
                b"GNU.sparse.realsize" => pax.sparse_size = Some(digits(value).ok_or_else(bad)?),
                // These change what the content means.
                b"SCHILY.realsize" => {
                    return Err(self.refused("is sparse in the format of star, which is not understood"));
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(self.refused("is sparse in an old format (0.0 or 0.1), which is not understood"));
                }
                key => match key.strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => pax.xattrs.push((name.into(), value.into())),
                    None if key.starts_with(b"SCHILY.acl.") || key == b"SCHILY.fflags" => pax.lost.push(key.into()),
                    None if key.starts_with(b"LIBARCHIVE.xattr.") || key == b"RHT.security.selinux" => {
                        pax.lost.push(key.into());
                    }
                    // Other keywords are to be ignored (POSIX), such as `atime` and `comment`.
                    None => {}
                },
            }
        }
        Ok(pax)
    }

    /// An entry with content of its own, from its header and what came before.
    fn entry(&mut self, header: &Header, kind: EntryType, stored: u64, extensions: Extensions) -> Result<Entry, Error> {
        let pax = extensions.pax.unwrap_or_default();
        let header_name = header.path_bytes().into_owned();
        let header_link = header.link_name_bytes().unwrap_or_default().into_owned();
        if pax.path.is_some() && extensions.long_name.is_some() || pax.link.is_some() && extensions.long_link.is_some()
        {
            return Err(self.refused("has two long names"));
        }
        let is_sparse_pax =
            pax.sparse_version != (None, None) || pax.sparse_name.is_some() || pax.sparse_size.is_some();
        if is_sparse_pax
            && (pax.sparse_version != (Some(1), Some(0)) || pax.sparse_name.is_none() || pax.sparse_size.is_none())
        {
            return Err(self.refused("is sparse in a format that is not understood"));
        }
        let path = pax.sparse_name.or(pax.path).or(extensions.long_name).unwrap_or(header_name);
        let link = pax.link.or(extensions.long_link).unwrap_or(header_link);
        self.current = path.clone();
        for (what, name) in [("name", &path), ("link target", &link)] {
            if name.len() > MAX_PATH {
                return Err(self.refused(&format!("has a {what} of {} bytes, {MAX_PATH} are the most", name.len())));
            }
            if name.contains(&0) {
                return Err(self.refused(&format!("has a NUL in its {what}")));
            }
        }
        if path.is_empty() {
            return Err(self.refused("has no name"));
        }
        let size = match pax.size {
            // A header can hold no more, and says 0, the most, or what fits.
            Some(size) if size != stored && size <= MAX_OCTAL_SIZE => {
                return Err(
                    self.refused(&format!("has {stored} bytes by its header and {size} by its extended header"))
                );
            }
            Some(size) if i64::try_from(size).is_err() => return Err(self.refused("has a size that is too large")),
            Some(size) => size,
            None => stored,
        };
        let is_sparse_gnu = kind == EntryType::GNUSparse;
        let kind = match kind {
            // Before ustar, a directory was a file whose name ends with a slash.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Hard,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => Kind::Character,
            EntryType::Block => Kind::Block,
            other => {
                let letter = char::from(other.as_byte()).escape_default();
                return Err(self.refused(&format!("is of type `{letter}`, which is not understood")));
            }
        };
        if kind != Kind::File && size != 0 {
            return Err(self.refused(&format!("is not a file and claims {size} bytes of content")));
        }
        if matches!(kind, Kind::Symlink | Kind::Hard) && link.is_empty() {
            return Err(self.refused("is a link to nothing"));
        }
        let old = header.as_old();
        let field = |what: &str, bytes: &[u8]| {
            number(bytes).ok_or_else(|| self.refused(&format!("has a {what} that is not a number")))
        };
        let id = |what: &str, own: Option<u32>, bytes: &[u8]| {
            // The last id means `leave as it is` to chown.
            let id = own.map_or_else(|| field(what, bytes), |id| Ok(id.into()))?;
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.refused(&format!("has {what} {id}, which no file can have")))
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => {
                let seconds = i64::try_from(field("time", &old.mtime)?);
                (seconds.map_err(|_| self.refused("has a time that is out of range"))?, 0)
            }
        };
        let mode = field("mode", &old.mode)?;
        let mode = u32::try_from(mode).map_err(|_| self.refused("has a mode that is out of range"))? & 0o7777;
        let (uid, gid) = (id("uid", pax.uid, &old.uid)?, id("gid", pax.gid, &old.gid)?);
        self.expect(size);
        let (mut real, mut stretches) = (size, None);
        if is_sparse_gnu || is_sparse_pax {
            let map = match (is_sparse_gnu, is_sparse_pax) {
                (true, true) => return Err(self.refused("is sparse in two formats")),
                (true, false) => {
                    let (map, size) = self.sparse_gnu(header)?;
                    real = size;
                    map
                }
                (false, _) => {
                    real = pax.sparse_size.unwrap_or_default();
                    self.sparse_pax()?
                }
            };
            stretches = Some(self.checked(map, real)?);
        }
        if real > self.limits.bytes {
            return Err(self.too_large(format!("has {real} bytes, {} are the most", self.limits.bytes)));
        }
        Ok(Entry { path, kind, mode, uid, gid, mtime, size: real, link, xattrs: pax.xattrs, lost: pax.lost, stretches })
    }

    /// The map of GNU's own sparse format: in the header and in blocks after it. Returns the file's size, too.
    fn sparse_gnu(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), Error> {
        let bad = |this: &Self| this.refused("has a malformed sparse map");
        let value =
            |bytes: &[u8]| number(bytes).and_then(|n| i64::try_from(n).ok()).and_then(|n| u64::try_from(n).ok());
        let gnu = header.as_gnu().ok_or_else(|| bad(self))?;
        let real = value(&gnu.realsize).ok_or_else(|| bad(self))?;
        let mut map = Vec::new();
        let add = |map: &mut Vec<(u64, u64)>, sparse: &[::tar::GnuSparseHeader]| {
            for part in sparse.iter().filter(|part| !part.is_empty()) {
                map.push((value(&part.offset)?, value(&part.numbytes)?));
            }
            Some(())
        };
        add(&mut map, &gnu.sparse).ok_or_else(|| bad(self))?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            if self.stream.fill(block.as_mut_bytes())? < BLOCK as usize {
                return Err(self.truncated());
            }
            add(&mut map, block.sparse()).filter(|()| map.len() <= MAX_STRETCHES).ok_or_else(|| bad(self))?;
            more = block.is_extended();
        }
        Ok((map, real))
    }

    /// The map of the PAX sparse format 1.0: decimal numbers in lines before the data, filled up to a block.
    fn sparse_pax(&mut self) -> Result<Vec<(u64, u64)>, Error> {
        let bad = |this: &Self| this.refused("has a malformed sparse map");
        let mut numbers = Vec::new();
        let mut digits_read = Vec::new();
        let mut expected = None;
        while expected.is_none_or(|count| numbers.len() < count) {
            let block = self.read(BLOCK)?;
            if block.len() < BLOCK as usize {
                return Err(bad(self));
            }
            for byte in block {
                match byte {
                    _ if expected.is_some_and(|count| numbers.len() == count) => break,
                    b'\n' => {
                        let value = digits(&digits_read).ok_or_else(|| bad(self))?;
                        digits_read.clear();
                        match expected {
                            Some(_) => numbers.push(value),
                            None => match usize::try_from(value) {
                                Ok(count) if count <= MAX_STRETCHES => expected = Some(2 * count),
                                _ => return Err(bad(self)),
                            },
                        }
                    }
                    digit if digits_read.len() < 20 => digits_read.push(digit),
                    _ => return Err(bad(self)),
                }
            }
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// A map that describes a file of `real` bytes with all of the data that is left.
    fn checked(&self, map: Vec<(u64, u64)>, real: u64) -> Result<Vec<(u64, u64)>, Error> {
        let mut end = 0;
        let mut data = 0;
        for (offset, length) in &map {
            let stop = offset.checked_add(*length).filter(|stop| *offset >= end && *stop <= real);
            let Some(stop) = stop else {
                return Err(self.refused("has a sparse map that overlaps or is out of bounds"));
            };
            end = stop;
            data += length;
        }
        match data == self.left {
            true => Ok(map),
            false => Err(self.refused(&format!("has {} bytes of data and a sparse map for {data}", self.left))),
        }
    }

    fn name(&self) -> PathBuf {
        join(Path::new(""), &self.current[..self.current.len().min(300)])
    }

    pub(crate) fn refused(&self, why: &str) -> Error {
        Error::Entry { archive: self.archive.into(), entry: self.name(), why: why.into() }
    }

    pub(crate) fn too_large(&self, what: String) -> Error {
        Error::TooLarge { archive: self.archive.into(), entry: Some(self.name()), what }
    }

    fn damaged(&self, why: &str) -> Error {
        Error::Archive { archive: self.archive.into(), why: why.into() }
    }

    fn truncated(&self) -> Error {
        let name = crate::error::shown(&self.name());
        self.damaged(&format!("ends in the middle of `{name}`: it is not whole"))
    }
}

/// A number of a header: octal digits, or a big-endian two's complement after a first bit that is set (GNU).
fn number(field: &[u8]) -> Option<i128> {
    match field.first()? {
        first if first & 0x80 != 0 => {
            let head = i128::from(first & 0x7f) - if first & 0x40 != 0 { 0x80 } else { 0 };
            Some(field[1..].iter().fold(head, |sum, byte| (sum << 8) | i128::from(*byte)))
        }
        _ => {
            let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
            let rest = &field[start..];
            let end = rest.iter().position(|b| !matches!(b, b'0'..=b'7')).unwrap_or(rest.len());
            let clean = rest[end..].iter().all(|b| matches!(b, 0 | b' '));
            clean.then(|| rest[..end].iter().fold(0, |sum, digit| sum * 8 + i128::from(digit - b'0')))
        }
    }
}

/// A number of decimal digits only.
fn digits(text: &[u8]) -> Option<u64> {
    match text.iter().all(u8::is_ascii_digit) {
        true => std::str::from_utf8(text).ok()?.parse().ok(),
        false => None,
    }
}

/// Seconds since 1970 with an optional sign and fraction.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_negative = seconds.starts_with('-');
    let whole = seconds.strip_prefix('-').unwrap_or(seconds);
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    let nanoseconds = fraction.bytes().chain([b'0'; 9]).take(9).fold(0, |sum, b| sum * 10 + u32::from(b - b'0'));
    match is_negative && nanoseconds > 0 {
        // The kernel counts nanoseconds forward.
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        false => Some((seconds, nanoseconds)),
    }
}
