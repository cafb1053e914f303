//! `volumes`, `tmpfs` and `devices`.

use std::collections::HashMap;

use crate::codes::Code;
use crate::diagnostic::Span;
use crate::model::{Device, Tmpfs, Volume};
use crate::units;

use super::Checker;
use super::declare::well_formed;
use super::inherit::Settings;
use super::properties::Property;
use super::resolve::Scope;
use super::values::Read;

/// Where the mounts of a component are written, in order.
pub(super) type Targets = Vec<Span>;

/// What the shim makes in every container's /dev, and file systems of the kernel.
const OWN_DEVICES: [&str; 17] = [
    "/dev/console",
    "/dev/fd",
    "/dev/full",
    "/dev/mqueue",
    "/dev/null",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/random",
    "/dev/shm",
    "/dev/stderr",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
    "/proc",
    "/sys",
];

impl<'a> Checker<'a, '_> {
    pub(super) fn mounts(
        &mut self,
        settings: &Settings<'a>,
        scope: Scope,
        targets: &mut Targets,
    ) -> (Vec<Volume>, Vec<Tmpfs>) {
        let (mut volumes, mut tmpfs) = (Vec::new(), Vec::new());
        if let Some(setting) = settings.get("volumes").or_else(|| settings.get("volume")) {
            let items = self.items(setting, scope).into_iter().flatten();
            // Most have one, and a vector that grows by itself begins with room for four.
            volumes.reserve_exact(items.clone().count());
            for item in items {
                volumes.extend(self.volume((setting.property, item), scope, targets));
            }
        }
        if let Some(setting) = settings.get("tmpfs") {
            let items = self.items(setting, scope).into_iter().flatten();
            tmpfs.reserve_exact(items.clone().count());
            for item in items {
                tmpfs.extend(self.tmpfs((setting.property, item), scope, targets));
            }
        }
        (volumes, tmpfs)
    }

    pub(super) fn devices(&mut self, settings: &Settings<'a>, scope: Scope, targets: &mut Targets) -> Vec<Device> {
        let Some(setting) = settings.get("devices") else { return Vec::new() };
        let items = self.items(setting, scope).into_iter().flatten();
        items.filter_map(|item| self.device((setting.property, item), scope, targets)).collect()
    }

    fn device(&mut self, (property, item): Read<'a>, scope: Scope, targets: &mut Targets) -> Option<Device> {
        let text = self.filled((property, item), scope)?;
        let span = item.value.span;
        let mut parts = text.split(':');
        let (source, target, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if more.is_some() {
            self.finding(Code::BadMount, span, "the device is not of the form `/dev/name` or `/dev/name:/inside`")
                .label("not understood")
                .expected(property.wants)
                .help("leave permissions such as `:rwm` out: those of the device's file hold");
            return None;
        }
        let source = self.absolute(span, property.name, source)?;
        let target = self.target(span, property.name, target.unwrap_or(&source), targets)?;
        if OWN_DEVICES
            .iter()
            .any(|own| target.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        {
            self.finding(Code::BadPath, span, "every container has a device of its own there")
                .label("would hide it")
                .expected("another place, such as `/dev/serial`")
                .help(format!("for example `{}`", property.example));
            return None;
        }
        Some(Device { source, target })
    }

    fn volume(&mut self, (property, item): Read<'a>, scope: Scope, targets: &mut Targets) -> Option<Volume> {
        let (text, written) = self.filled_parts((property, item), scope)?;
        let span = item.value.span;
        let mut parts = text.split(':');
        let (source, target, options, more) =
            (parts.next().unwrap_or_default(), parts.next(), parts.next(), parts.next());
        let Some(target) = target.filter(|_| more.is_none()) else {
            self.bad_mount(
                span,
                property,
                "the volume is not of the form `host:inside` or `name:inside`, with `:ro` if wanted",
            );
            return None;
        };
        let readonly = match options {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(_) => {
                self.bad_mount(span, property, "the volume's option is neither `ro` nor `rw`");
                return None;
            }
        };
        let relative = source.starts_with("./") || source.starts_with("../") || matches!(source, "." | "..");
        if !relative && !source.starts_with('/') {
            if !well_formed(source) {
                let what = "what is mounted is neither a path that begins with `/` or `./` nor a volume's name";
                self.bad_mount(span, property, what);
                return None;
            }
            let target = self.target(span, property.name, target, targets)?;
            self.mounted(span, source);
            return Some(Volume { source: source.to_owned(), named: true, target, readonly });
        }
        let target = self.target(span, property.name, target, targets)?;
        Some(Volume { source: self.seen_from_here(source, &written, 0), named: false, target, readonly })
    }

    fn tmpfs(&mut self, (property, item): Read<'a>, scope: Scope, targets: &mut Targets) -> Option<Tmpfs> {
        let text = self.filled((property, item), scope)?;
        let span = item.value.span;
        let (target, options) =
            text.split_once(':').map_or((text.as_ref(), None), |(target, options)| (target, Some(options)));
        let (mut size, mut mode) = (None, None);
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            match option.split_once('=') {
                Some(("size", text)) if size.is_none() => size = Some(self.tmpfs_size(span, property, text)?),
                Some(("mode", text)) if mode.is_none() => {
                    let bits =
                        u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777 && !text.starts_with('+'));
                    if bits.is_none() {
                        self.bad_mount(span, property, "the mode is no octal number up to 7777");
                    }
                    mode = Some(bits?);
                }
                _ => {
                    self.bad_mount(span, property, "the options are not `size=` and `mode=`, each once");
                    return None;
                }
            }
        }
        let target = self.target(span, property.name, target, targets)?;
        Some(Tmpfs { target, size, mode: mode.unwrap_or(0o1777) })
    }

    fn tmpfs_size(&mut self, span: Span, property: &Property, text: &str) -> Option<u64> {
        match units::size(text) {
            // A tmpfs of size 0 has no limit at all, which nobody means.
            Ok(0) => {
                self.finding(Code::OutOfRange, span, "the size of a tmpfs cannot be zero")
                    .label("zero")
                    .expected("a size greater than zero")
                    .help(format!("for example `{}`", property.example));
                None
            }
            Ok(size) => Some(size),
            Err(error) => {
                self.bad_unit(span, property.name, error, units::KNOWN_SIZES, property.example);
                None
            }
        }
    }

    /// A mount's place inside.
    pub(super) fn target(&mut self, span: Span, name: &str, path: &str, targets: &mut Targets) -> Option<String> {
        let target = self.absolute(span, name, path)?;
        if target == "/" {
            self.finding(Code::BadPath, span, "nothing can be mounted over the root directory")
                .label("the whole image would vanish")
                .expected("a directory below `/`")
                .help("for a writable root write `readonly = false`");
            return None;
        }
        targets.push(span);
        Some(target)
    }

    /// Compares the places of all mounts, which `targets` has the spans of.
    pub(super) fn places_are_distinct<'p>(&mut self, places: impl Iterator<Item = &'p str> + Clone, targets: &Targets) {
        let mut known = HashMap::new();
        let few = targets.len() <= 16;
        for (number, (place, &span)) in places.clone().zip(targets).enumerate() {
            let first = match few {
                true => places.clone().take(number).position(|other| other == place),
                false => Some(*known.entry(place).or_insert(number)).filter(|first| *first != number),
            };
            if let Some(first) = first {
                self.finding(Code::DuplicateValue, span, "two mounts have the same place in the container")
                    .label("hides the other one")
                    .related(targets[first], "mounted here first")
                    .help("keep one of them");
            }
        }
    }

    pub(super) fn bad_mount(&mut self, span: Span, property: &Property, message: &str) {
        self.finding(Code::BadMount, span, message)
            .label("not understood")
            .expected(property.wants)
            .help(format!("for example `{}`", property.example));
    }
}
