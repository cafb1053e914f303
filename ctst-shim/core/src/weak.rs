//! Leaving out one layer of a container's confinement, so that a test sees which attacks it is that this layer stops.
//!
//! Only a build with `--cfg weaken` can do that, which no feature of a crate switches on. In every other one [`weak`] is
//! `false` before the program is compiled, so that nothing of what follows it is in there.

/// What can be left out. What each stops is in `ESCAPES.md` beside the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The system call filter.
    Filter,
    /// Giving up capabilities.
    Capabilities,
    /// `no_new_privs`. Without it no filter can be installed: only together with [`Layer::Filter`].
    NoNewPrivs,
    /// That pid 1 cannot be looked into.
    Dumpable,
    /// What covers parts of /proc and /sys.
    Masks,
    /// Read-only mounts.
    ReadOnly,
    /// Mounts without setuid programs and devices.
    NosuidNodev,
    /// That no user namespace can be made.
    UserNamespaces,
    /// The own network namespace of a container that is not on the bridge: it shares the project's.
    Network,
    /// A container's own cgroup namespace.
    CgroupNamespace,
    /// Closing descriptors before a program is executed.
    Descriptors,
    /// A descriptor of the host's root is left open (as in CVE-2024-21626).
    Leak,
    /// Mounting on nothing that is a part of /proc.
    Targets,
    /// Comparing what is mounted with what was checked.
    Sources,
}

/// Whether this build leaves out `layer`.
#[cfg(not(weaken))]
#[must_use]
pub const fn weak(_layer: Layer) -> bool {
    false
}

#[cfg(weaken)]
pub use chosen::weak;

#[cfg(weaken)]
mod chosen {
    #[cfg(not(debug_assertions))]
    compile_error!("a weakened shim is for tests: there is no release of it");

    use super::Layer;

    /// A test copies the program and writes names of layers over the blanks.
    static MARK: [u8; 96] =
        *b"ctst-weakened-shim:                                                                             ";

    /// Whether this copy of the program leaves out `layer`.
    #[must_use]
    pub fn weak(layer: Layer) -> bool {
        // Without this the compiler would know the blanks.
        let mark = String::from_utf8_lossy(std::hint::black_box(&MARK));
        let name = format!("{layer:?}");
        mark.split([':', ' ']).skip(1).any(|chosen| chosen == name)
    }
}
