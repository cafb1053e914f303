//! `/etc/ld.so.cache` in the format `glibc-ld.so.cache1.1`, alone or behind the older `ld.so-1.7.0` table.
//!
//! A header of 48 bytes (magic, number of entries, length of the strings, flags, extension offset), entries of 24 bytes
//! (flags, key, value, OS version, hardware capabilities) sorted for the loader's binary search, then the strings. Keys
//! and values are offsets from the header.

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_ENTRY: usize = 12;
const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// Most entries that are read; a large installation has ten thousand.
const MAX_ENTRIES: usize = 1 << 18;

/// One library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Which C library and ABI it is for; passed on as it is.
    flags: u32,
    /// Such as `libc.so.6`.
    pub(crate) name: Vec<u8>,
    /// Where it is.
    pub(crate) path: Vec<u8>,
}

/// The entries in the file's order, without variants for particular processors. Whatever is damaged is left out, as the
/// loader does: the default directories are searched after the cache anyway.
pub(crate) fn parse(bytes: &[u8]) -> Vec<Entry> {
    let start = match bytes.starts_with(OLD_MAGIC) {
        true => word(bytes, OLD_MAGIC.len())
            .and_then(|count| (count as usize).checked_mul(OLD_ENTRY)?.checked_add(OLD_MAGIC.len() + 4))
            .map_or(usize::MAX, |end| end.saturating_add(7) & !7),
        false => 0,
    };
    let Some(table) = bytes.get(start..).filter(|table| table.starts_with(MAGIC)) else { return Vec::new() };
    let count = word(table, MAGIC.len()).map_or(0, |count| count as usize).min(MAX_ENTRIES);
    let text = |offset: u32| {
        let rest = table.get(offset as usize..)?;
        Some(rest[..rest.iter().take(4096).position(|b| *b == 0)?].to_vec())
    };
    (0..count)
        .map_while(|index| table.get(HEADER + index * ENTRY..HEADER + (index + 1) * ENTRY))
        .filter(|entry| entry[16..24] == [0; 8])
        .filter_map(|entry| {
            Some(Entry { flags: word(entry, 0)?, name: text(word(entry, 4)?)?, path: text(word(entry, 8)?)? })
        })
        .collect()
}

/// A cache of `entries`, which keep the order that [`parse`] gave them.
pub(crate) fn write(entries: &[Entry]) -> Vec<u8> {
    let start = HEADER + entries.len() * ENTRY;
    let (mut table, mut strings) = (Vec::new(), Vec::new());
    let mut add = |text: &[u8]| {
        let at = (start + strings.len()) as u32;
        strings.extend(text);
        strings.push(0);
        at
    };
    for entry in entries {
        let (name, path) = (add(&entry.name), add(&entry.path));
        for word in [entry.flags, name, path, 0, 0, 0] {
            table.extend(word.to_ne_bytes());
        }
    }
    let mut out = MAGIC.to_vec();
    out.extend((entries.len() as u32).to_ne_bytes());
    out.extend((strings.len() as u32).to_ne_bytes());
    out.resize(HEADER, 0);
    out.extend(table);
    out.extend(strings);
    out
}

/// The host wrote the file, in its own byte order.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, path: &str) -> Entry {
        Entry { flags: 0x0303, name: name.into(), path: path.into() }
    }

    #[test]
    fn round_trip_truncation_and_the_older_prefix() {
        let entries = [entry("libz.so.1", "/lib/libz.so.1"), entry("libc.so.6", "/lib/libc.so.6")];
        let bytes = write(&entries);
        assert_eq!(parse(&bytes), entries);
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).len() <= entries.len(), "{length}");
        }
        assert!(parse(&bytes[..bytes.len() - 1]).len() < entries.len());

        let mut old = OLD_MAGIC.to_vec();
        old.extend(1u32.to_ne_bytes());
        old.extend([0; OLD_ENTRY]);
        old.resize(old.len().next_multiple_of(8), 0);
        old.extend(&bytes);
        assert_eq!(parse(&old), entries);
    }

    #[test]
    fn processor_variants_and_lies_are_left_out() {
        let mut bytes = write(&[entry("a", "/a"), entry("b", "/b")]);
        bytes[HEADER + 16] = 1;
        assert_eq!(parse(&bytes), [entry("b", "/b")]);
        bytes[HEADER + ENTRY + 4..HEADER + ENTRY + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse(&bytes), []);
        bytes[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(parse(&bytes).len() < 4);
    }
}
