//! Installing a filter, as the shim does it. A filter binds the calling thread and what it starts, so a
//! test gives itself a thread to lose.

use std::{io, thread};

use containust_policy::seccomp::Instruction;

/// Installs `program` on the calling thread, for good.
pub(crate) fn install(program: &[Instruction]) -> io::Result<()> {
    let header = libc::sock_fprog {
        len: program.len().try_into().map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: prctl with PR_SET_NO_NEW_PRIVS takes integers only. For seccomp, `header` and the program it
    // points to outlive the call, `Instruction` is laid out as `sock_filter`, and the kernel only reads both.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &header) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What `body` says in a thread of its own.
pub(crate) fn in_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(body).join()).expect("the thread does not panic")
}
