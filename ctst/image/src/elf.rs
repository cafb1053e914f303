//! What the dynamic loader reads of an ELF file. Only the header, the program headers and the dynamic section are
//! read, each bounded, so that a large program costs no more than a small one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use goblin::container::Ctx;
use goblin::elf::dynamic::{DF_1_NODEFLIB, DT_FLAGS_1, DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRTAB, Dynamic};
use goblin::elf::header::ELFMAG;
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP, PT_LOAD, ProgramHeader};

use crate::Error;

/// Most program headers that are read; linkers write a dozen.
const MAX_HEADERS: u16 = 1024;
/// Most bytes of a dynamic section that are read; common ones have 500.
const MAX_DYNAMIC: u64 = 1 << 20;
/// Longest string, in bytes: a library name, an interpreter, a search path.
const MAX_STRING: usize = 16 << 10;

/// Read at once, and the longest name of a library that is found where two such pieces meet.
const PIECE: usize = 1 << 20;
const LONGEST_NAME: usize = 256;
/// Of one file more is not read for names, and more names are not taken.
const MOST_READ: u64 = 1 << 30;
const MOST_NAMES: usize = 4096;
const SUFFIX: &[u8] = b".so";

/// Class, byte order and machine: libraries of another kind are passed over by the loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) is_64: bool,
    little: bool,
    pub(crate) machine: u16,
}

/// One program or library.
#[derive(Debug, Clone)]
pub(crate) struct Elf {
    pub(crate) machine: Machine,
    pub(crate) interpreter: Option<PathBuf>,
    pub(crate) needed: Vec<OsString>,
    pub(crate) soname: Option<OsString>,
    /// `DT_RPATH`, split at `:`, nothing expanded.
    pub(crate) rpath: Vec<OsString>,
    /// `DT_RUNPATH`; where there is one, `DT_RPATH` does not count.
    pub(crate) runpath: Option<Vec<OsString>>,
    /// `-z nodefaultlib`: neither the cache nor the default directories are searched.
    pub(crate) no_default: bool,
}

impl Elf {
    /// Reads `file`; `None` when it is no ELF file.
    pub(crate) fn read(file: &File, path: &Path) -> Result<Option<Elf>, Error> {
        let damaged = |why: &str| Error::Elf { path: path.into(), why: why.into() };
        let mut ident = [0; 64];
        let length = read_up_to(file, &mut ident, 0, path)?;
        let ident = &ident[..length];
        if !ident.starts_with(ELFMAG) {
            return Ok(None);
        }
        let malformed = |e: goblin::error::Error| damaged(&e.to_string());
        let header = goblin::elf::Elf::parse_header(ident).map_err(malformed)?;
        let container = header.container().map_err(malformed)?;
        let endian = header.endianness().map_err(malformed)?;
        let ctx = Ctx::new(container, endian);
        if header.e_phnum > MAX_HEADERS {
            return Err(damaged("has too many program headers"));
        }
        let mut table = vec![0; ProgramHeader::size(ctx) * usize::from(header.e_phnum)];
        if read_up_to(file, &mut table, header.e_phoff, path)? < table.len() {
            return Err(damaged("is truncated"));
        }
        let headers = ProgramHeader::parse(&table, 0, usize::from(header.e_phnum), ctx).map_err(malformed)?;

        let mut elf = Elf {
            machine: Machine { is_64: container.is_big(), little: endian.is_little(), machine: header.e_machine },
            interpreter: None,
            needed: Vec::new(),
            soname: None,
            rpath: Vec::new(),
            runpath: None,
            no_default: false,
        };
        if let Some(interpreter) = headers.iter().find(|h| h.p_type == PT_INTERP) {
            elf.interpreter = Some(string(file, interpreter.p_offset, path)?.into());
        }
        let Some(section) = headers.iter().find(|h| h.p_type == PT_DYNAMIC) else { return Ok(Some(elf)) };
        if section.p_filesz > MAX_DYNAMIC {
            return Err(damaged("has too large a dynamic section"));
        }
        let mut bytes = vec![0; section.p_filesz as usize];
        if read_up_to(file, &mut bytes, section.p_offset, path)? < bytes.len() {
            return Err(damaged("is truncated"));
        }
        // As if the file were this section only: that is all the parser looks at.
        let alone = ProgramHeader { p_type: PT_DYNAMIC, p_offset: 0, p_filesz: section.p_filesz, ..Default::default() };
        let dynamic = Dynamic::parse(&bytes, &[alone], ctx).map_err(malformed)?;
        let Some(dynamic) = dynamic else { return Ok(Some(elf)) };
        let Some(strings) = dynamic.dyns.iter().find(|d| d.d_tag == DT_STRTAB) else { return Ok(Some(elf)) };
        let strings = offset(&headers, strings.d_val).ok_or_else(|| damaged("has no string table where it says"))?;
        for entry in &dynamic.dyns {
            let text = || string(file, strings.saturating_add(entry.d_val), path);
            match entry.d_tag {
                DT_NEEDED => elf.needed.push(text()?),
                DT_SONAME => elf.soname = Some(text()?),
                DT_RPATH => elf.rpath = split(text()?),
                DT_RUNPATH => elf.runpath = Some(split(text()?)),
                DT_FLAGS_1 => elf.no_default = entry.d_val & DF_1_NODEFLIB != 0,
                _ => {}
            }
        }
        Ok(Some(elf))
    }
}

/// What stands in a file and is the name of a library, such as `libssl.so.3`: what `dlopen(3)` is called with, mostly.
pub(crate) fn library_names(file: &File, path: &Path) -> Result<Vec<OsString>, Error> {
    let mut names = BTreeSet::new();
    let mut buffer = vec![0; PIECE + LONGEST_NAME];
    let mut start = 0;
    while start < MOST_READ && names.len() < MOST_NAMES {
        let length = read_up_to(file, &mut buffer, start, path)?;
        let piece = &buffer[..length];
        let ends = piece.windows(SUFFIX.len()).enumerate().filter(|(_, window)| *window == SUFFIX);
        names.extend(ends.filter_map(|(at, _)| library_name(piece, at)).map(|name| OsString::from_vec(name.to_vec())));
        if length < buffer.len() {
            break;
        }
        start += PIECE as u64;
    }
    Ok(names.into_iter().take(MOST_NAMES).collect())
}

/// The name around the `.so` at `at`.
fn library_name(piece: &[u8], at: usize) -> Option<&[u8]> {
    let is_part = |b: &u8| b.is_ascii_alphanumeric() || b"_+.-".contains(b);
    let before = piece[..at].iter().rev().take(LONGEST_NAME).take_while(|b| is_part(b)).count();
    let mut end = at + SUFFIX.len();
    while let [b'.', rest @ ..] = &piece[end..] {
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            break;
        }
        end += 1 + digits;
    }
    let name = piece.get(at - before..end)?;
    (name.starts_with(b"lib") && !piece.get(end).is_some_and(is_part)).then_some(name)
}

/// Where in the file the address `address` of memory comes from.
fn offset(headers: &[ProgramHeader], address: u64) -> Option<u64> {
    let segment = headers
        .iter()
        .find(|h| h.p_type == PT_LOAD && address.checked_sub(h.p_vaddr).is_some_and(|into| into < h.p_filesz))?;
    segment.p_offset.checked_add(address - segment.p_vaddr)
}

fn string(file: &File, offset: u64, path: &Path) -> Result<OsString, Error> {
    let mut text = vec![0; 256];
    loop {
        let length = read_up_to(file, &mut text, offset, path)?;
        if let Some(end) = text[..length].iter().position(|b| *b == 0) {
            text.truncate(end);
            return Ok(OsString::from_vec(text));
        }
        if length < text.len() || text.len() >= MAX_STRING {
            return Err(Error::Elf { path: path.into(), why: "has an unterminated string".into() });
        }
        text.resize(text.len() * 4, 0);
    }
}

fn split(list: OsString) -> Vec<OsString> {
    list.into_vec().split(|b| *b == b':').map(|part| OsString::from_vec(part.to_vec())).collect()
}

/// Fills `buffer` from `offset` as far as the file goes.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64, path: &Path) -> Result<usize, Error> {
    let mut done = 0;
    // An offset beyond what the kernel takes lies beyond the end of every file.
    if i64::try_from(offset.saturating_add(buffer.len() as u64)).is_err() {
        return Ok(0);
    }
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::std("read", path, &e)),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the bytes, there is an answer, and soon.
    #[test]
    fn damage_is_an_answer() {
        let bytes = std::fs::read("/bin/sh").unwrap();
        let path = Path::new("/bin/sh");
        let file = File::from(rustix::fs::memfd_create("elf", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&bytes, 0).unwrap();
        let whole = Elf::read(&file, path).unwrap().unwrap();
        assert!(whole.interpreter.is_some() && whole.needed.iter().any(|name| name == "libc.so.6"), "{whole:?}");

        let mut refused = 0;
        for index in 0..1024 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                file.write_all_at(&[value], index as u64).unwrap();
                refused += usize::from(!matches!(Elf::read(&file, path), Ok(Some(_))));
            }
            file.write_all_at(&bytes[index..=index], index as u64).unwrap();
        }
        assert!(refused > 50, "{refused}");
        for length in (0..bytes.len() as u64).rev().step_by(97) {
            file.set_len(length).unwrap();
            let _ = Elf::read(&file, path);
        }
        for length in 0..64 {
            file.set_len(0).unwrap();
            file.write_all_at(&bytes[..length], 0).unwrap();
            assert!(!matches!(Elf::read(&file, path), Ok(Some(_))), "{length}");
        }
    }
}
