//! Bundles: a composition with all that it takes, in one file that another host runs.

mod make;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use containust_image::{Bundle, Manifest, member_of};
use containust_lang::Loader;
use containust_lang::model::{Component, Image, Lazy};

pub use make::Bundled;

use crate::error::{Error, Result};
use crate::images::Progress;
use crate::images::lock::Lock;
use crate::project::Project;

/// How the names of bundles end.
pub(crate) const EXTENSION: &str = "ctstar";
/// The composition's lock, as it goes in a bundle.
const LOCK: &str = "files/containust.lock";

/// The bundle of a project whose file is one, once it was opened.
pub(crate) type Slot = Arc<OnceLock<Bundle>>;

/// Whether it is the name of a bundle.
pub(crate) fn is_bundle(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// What stands in a bundle for the files that its composition was made from.
pub(crate) struct Carried<'a>(pub(crate) &'a Bundle);

impl Carried<'_> {
    fn member(&self, name: &str) -> std::result::Result<Vec<u8>, String> {
        match self.0.read(name) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err("it is not in the bundle".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Loader for Carried<'_> {
    fn load(&self, importing: &str, path: &str) -> std::result::Result<(String, Vec<u8>), String> {
        let imports = &self.0.manifest().imports;
        let found = imports.iter().find(|import| import.by == importing && import.path == path);
        let name = &found.ok_or_else(|| "it is not in the bundle".to_owned())?.name;
        Ok((name.clone(), self.member(&member_of(name))?))
    }

    fn fetch(&self, url: &str, pin: Option<&str>) -> std::result::Result<Vec<u8>, (String, String)> {
        let fetched = self.0.manifest().fetched.iter().find(|fetched| fetched.url == url);
        let help = || "make the bundle anew: ctst bundle".to_owned();
        let absent = || ("it is not in the bundle".to_owned(), help());
        let fetched = fetched.filter(|fetched| pin.is_none_or(|pin| pin == fetched.sha256)).ok_or_else(absent)?;
        self.member(&format!("imports/{}", fetched.sha256)).map_err(|cause| (cause, help()))
    }

    fn read(&self, path: &str) -> std::result::Result<Option<Vec<u8>>, String> {
        let found = self.0.manifest().reads.iter().find(|read| read.path == path);
        match &found.ok_or_else(|| "it is not in the bundle".to_owned())?.member {
            Some(member) => self.member(member).map(Some),
            None => Ok(None),
        }
    }
}

impl Project {
    /// The bundle that its file is; `None`: it is none. Opened once.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn bundle(&self) -> Result<Option<&Bundle>> {
        if !is_bundle(self.file()) {
            return Ok(None);
        }
        if let Some(bundle) = self.slot().get() {
            return Ok(Some(bundle));
        }
        let bundle = Bundle::open(self.file()).map_err(|error| Error::Store(Box::new(error)))?;
        Ok(Some(self.slot().get_or_init(|| bundle)))
    }

    /// Reads all of the bundle, and compares it with what it says of itself, and with the digest of its file that somebody was told: 64
    /// hexadecimal digits. Gives that digest.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::NoBundle`].
    pub fn verify_bundle(&self, expected: Option<&str>, progress: &mut dyn FnMut(Progress)) -> Result<String> {
        let Some(bundle) = self.bundle()? else { return Err(Error::NoBundle { file: self.file().to_owned() }) };
        let expected = expected.map(|text| text.strip_prefix("sha256:").unwrap_or(text));
        if let Some(bad) = expected.filter(|text| text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(Error::Store(Box::new(containust_image::Error::PinFormat(bad.to_owned()))));
        }
        look_through(self, bundle, expected, progress).map_err(|error| Error::Store(Box::new(error)))
    }

    /// A file of the project's author that a component names: of the bundle, where the project is one.
    pub(crate) fn read_named(&self, path: &str) -> std::result::Result<Vec<u8>, String> {
        match self.bundle().map_err(|error| error.to_string())? {
            Some(bundle) => Carried(bundle).read(path)?.ok_or_else(|| "no such file".to_owned()),
            None => crate::project::read_bounded(&self.folder().join(path)).map_err(|error| error.to_string()),
        }
    }
}

/// Reads all of it, unless that was done.
pub(crate) fn look_through(
    project: &Project,
    bundle: &Bundle,
    expected: Option<&str>,
    progress: &mut dyn FnMut(Progress),
) -> Result<String, containust_image::Error> {
    let known = bundle.is_verified();
    let name = project.file_name();
    let digest = bundle.verify(expected, &mut |detail| {
        progress(Progress::Verifying { bundle: name.clone(), detail });
    })?;
    if !known {
        progress(Progress::Verified { bundle: name, digest: digest.clone() });
    }
    Ok(digest)
}

/// What `containust.lock` was where the bundle was made.
pub(crate) fn lock(bundle: &Bundle, path: &Path) -> Result<Lock> {
    let bytes = bundle.read(LOCK).map_err(|error| Error::Store(Box::new(error)))?;
    bytes.map_or_else(|| Ok(Lock::default()), |bytes| Lock::parse(bytes, path))
}

/// Has a component's image come from the bundle.
///
/// # Errors
/// [`Error::Image`]: it has none of this name.
pub(crate) fn take_image(manifest: &Manifest, component: &mut Component) -> Result<()> {
    let image = written(component);
    let Some(found) = manifest.images.iter().find(|packed| packed.image == image) else {
        return Err(Error::Image {
            component: component.name.clone(),
            problem: format!("the bundle has no image `{}`", image.escape_debug()),
            help: Some("it was made with other parameters or profiles: give it the same, or make it anew".to_owned()),
        });
    };
    component.image = Image::Bundled { image, sha256: found.digest.clone() };
    // What is in a bundle has to be unpacked anyway.
    component.lazy = Some(Lazy::No);
    // What it was stripped of is not carried.
    component.distroless = None;
    Ok(())
}

/// A component's image as its composition writes it.
pub(crate) fn written(component: &Component) -> String {
    let image = image(&component.image);
    match component.distroless {
        Some(_) => format!("distroless {} of {image}", crate::images::build::name(component)),
        None => image,
    }
}

fn image(image: &Image) -> String {
    let pinned = |text: String, pin: &Option<String>| match pin {
        Some(pin) => format!("{text}@sha256:{pin}"),
        None => text,
    };
    match image {
        Image::File { path, sha256 } => pinned(format!("file://{path}"), sha256),
        Image::Tar { path, sha256 } => pinned(format!("tar://{path}"), sha256),
        Image::Registry { name, sha256, locked: _ } => pinned(format!("oci://{name}"), sha256),
        Image::Local { name, sha256 } => pinned(format!("image://{name}"), sha256),
        Image::Host { programs, include, sha256 } => {
            let mut text = format!("host://{}", programs.join(","));
            if !include.is_empty() {
                text += &format!(" + {}", include.join(", "));
            }
            pinned(text, sha256)
        }
        Image::Bundled { image, .. } => image.clone(),
        // Values of a build's arguments are not for everybody who lists images. Made of strings, so that serialising cannot fail.
        Image::Build(build) => {
            let digest = crate::images::imports::sha256(&serde_json::to_vec(build).unwrap_or_default());
            format!("build {}", digest.get(..16).unwrap_or(&digest))
        }
    }
}
