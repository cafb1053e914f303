//! S: system calls that nobody in a container makes for a good reason.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use libc::{EAFNOSUPPORT, ENOSYS, EPERM, SIGSYS, c_long};

use crate::sys::{call, mount, stack_filter};
use crate::{Broken, Check, Facts, Holds, Skipped, Verdict, all, refused};

pub(crate) const CHECKS: &[Check] = &[
    ("S01", dangerous),
    ("S02", |_| {
        all([libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]
            .map(|number| (number.to_string(), refused(call(number, &[]), &[ENOSYS]))))
    }),
    ("S03", |_| {
        if cfg!(target_arch = "x86_64") {
            refused(call(0x4000_0000 | libc::SYS_getpid, &[]), &[ENOSYS])
        } else {
            Skipped("x32 exists on x86-64 only".to_owned())
        }
    }),
    ("S04", other_table),
    ("S05", |_| refused(call(libc::SYS_ioctl, &[0, 0x5412]), &[EPERM])),
    ("S06", |_| refused(call(libc::SYS_ioctl, &[0, 0x5412 | 1 << 32]), &[EPERM])),
    ("S07", |_| refused(call(libc::SYS_ioctl, &[0, 0x541c]), &[EPERM])),
    ("S08", |_| refused(call(libc::SYS_personality, &[libc::ADDR_NO_RANDOMIZE.into()]), &[EPERM])),
    ("S09", families),
    ("S13", nested),
];

fn dangerous(_: &Facts) -> Verdict {
    let refusals = [
        ("acct", libc::SYS_acct),
        ("add_key", libc::SYS_add_key),
        ("bpf", libc::SYS_bpf),
        ("delete_module", libc::SYS_delete_module),
        ("finit_module", libc::SYS_finit_module),
        ("init_module", libc::SYS_init_module),
        ("kcmp", libc::SYS_kcmp),
        ("kexec_file_load", libc::SYS_kexec_file_load),
        ("kexec_load", libc::SYS_kexec_load),
        ("keyctl", libc::SYS_keyctl),
        ("mbind", libc::SYS_mbind),
        ("migrate_pages", libc::SYS_migrate_pages),
        ("move_pages", libc::SYS_move_pages),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("quotactl_fd", 443),
        ("reboot", libc::SYS_reboot),
        ("request_key", libc::SYS_request_key),
        ("swapoff", libc::SYS_swapoff),
        ("syslog", libc::SYS_syslog),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("vhangup", libc::SYS_vhangup),
    ];
    #[cfg(target_arch = "x86_64")]
    let old: &[(&str, c_long, i32)] = &[
        ("iopl", libc::SYS_iopl, EPERM),
        ("ioperm", libc::SYS_ioperm, EPERM),
        ("modify_ldt", libc::SYS_modify_ldt, EPERM),
        ("uselib", libc::SYS_uselib, ENOSYS),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let old: &[(&str, c_long, i32)] = &[];
    let refusals = refusals.iter().map(|(name, number)| (*name, *number, EPERM)).chain(old.iter().copied());
    all(refusals.map(|(name, number, error)| (name.to_owned(), refused(call(number, &[]), &[error]))))
}

fn other_table(_: &Facts) -> Verdict {
    if !cfg!(target_arch = "x86_64") {
        return Skipped("int 0x80 exists on x86-64 only".to_owned());
    }
    match Command::new("/proc/self/exe").arg("int80").output() {
        Ok(output) if output.status.signal() == Some(SIGSYS) => Holds,
        Ok(output) if output.status.signal() == Some(libc::SIGSEGV) => {
            Skipped("this kernel has no 32-bit calls".to_owned())
        }
        other => Broken(format!("{other:?}")),
    }
}

/// AX25, IPX, APPLETALK, X25, KEY, PACKET, RDS, PPPOX, CAN, TIPC, BLUETOOTH, RXRPC, ALG, NFC, VSOCK, KCM, QRTR, SMC, XDP,
/// MCTP.
const FAMILIES: [c_long; 20] = [3, 4, 5, 9, 15, 17, 21, 24, 29, 30, 31, 33, 38, 39, 40, 41, 42, 43, 44, 45];

fn families(_: &Facts) -> Verdict {
    all(FAMILIES.into_iter().flat_map(|family| {
        [("socket", libc::SYS_socket), ("socketpair", libc::SYS_socketpair)].map(|(how, number)| {
            let kind = libc::SOCK_RAW.into();
            (format!("{how} {family}"), refused(call(number, &[family, kind, 0, 0]), &[EAFNOSUPPORT]))
        })
    }))
}

/// A filter of one's own is allowed, and cannot loosen: neither one that allows everything nor one that asks this process.
fn nested(_: &Facts) -> Verdict {
    for listener in [false, true] {
        if let Err(error) = stack_filter(listener) {
            return Broken(format!("a filter that asks ({listener}) is refused: {error}"));
        }
    }
    all([
        ("mount".to_owned(), refused(mount(c"none", c"/tmp", c"tmpfs", 0), &[EPERM])),
        ("keyctl".to_owned(), refused(call(libc::SYS_keyctl, &[]), &[EPERM])),
    ])
}
