//! System calls as an attacker makes them: without a library between.
#![expect(unsafe_code, reason = "what the kernel answers can only be seen by making the call itself")]

use std::ffi::CStr;

use libc::{c_int, c_long};

/// Makes a system call. Pointers are those of [`pointer`], to memory that outlives the call.
pub(crate) fn call(number: c_long, arguments: &[c_long]) -> Result<c_long, i32> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: every pointer passed here is null or made by `pointer` from memory of the caller's that lives on, and large
    // enough for the call.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result >= 0 { Ok(result) } else { Err(last()) }
}

/// A reference as an argument.
pub(crate) fn pointer<T: ?Sized>(to: &T) -> c_long {
    std::ptr::from_ref(to).cast::<u8>() as c_long
}

/// A buffer as an argument.
pub(crate) fn pointer_mut<T: ?Sized>(to: &mut T) -> c_long {
    std::ptr::from_mut(to).cast::<u8>() as c_long
}

fn last() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// `clone(2)` with these flags, as a fork: whether it works, whatever the child would do.
pub(crate) fn fork(flags: c_int) -> Result<(), i32> {
    match call(libc::SYS_clone, &[(flags | libc::SIGCHLD).into(), 0, 0, 0, 0]) {
        Ok(0) => exit(),
        other => other.map(|_| ()),
    }
}

/// `clone3(2)` with these flags, as a fork.
pub(crate) fn clone3(flags: u64) -> Result<(), i32> {
    // `struct clone_args` of the first version: flags, three pointers, the signal, stack, size, tls.
    let arguments = [flags, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    match call(libc::SYS_clone3, &[pointer(&arguments), 64]) {
        Ok(0) => exit(),
        other => other.map(|_| ()),
    }
}

fn exit() -> ! {
    // SAFETY: does not return, and runs nothing of the parent's.
    unsafe { libc::_exit(0) }
}

/// A mount as of old.
pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> Result<(), i32> {
    let arguments = [source, target, kind].map(|text| text.as_ptr() as c_long);
    call(libc::SYS_mount, &[arguments[0], arguments[1], arguments[2], flags as c_long, 0]).map(|_| ())
}

/// Calls getpid through the interrupt of 32-bit programs. A filter that kills leaves nothing to return to.
pub(crate) fn int80() {
    #[cfg(target_arch = "x86_64")]
    {
        let mut result: u64 = 20;
        // SAFETY: getpid takes nothing and changes nothing; the interrupt clobbers r8 to r11.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        println!("answered {result}");
    }
}

/// Does all that a process can do to outlive who started it: no signal at the death of a parent, every signal ignored, a
/// session and a child of its own. Never returns.
pub(crate) fn ignore_everything() {
    // SAFETY: plain integers, and SIG_IGN installs no handler of ours.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, 0);
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::fork();
        libc::setsid();
    }
    println!("deaf");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}

/// Leaves `count` children of children to pid 1, half of them alive for a while.
pub(crate) fn orphans(count: u32) {
    for number in 0..count {
        // SAFETY: this process has one thread, and the children only fork, wait and exit.
        unsafe {
            if libc::fork() == 0 {
                if libc::fork() == 0 {
                    libc::usleep(if number % 2 == 0 { 0 } else { 20_000 });
                    libc::_exit(3);
                }
                libc::_exit(0);
            }
            libc::wait(std::ptr::null_mut());
        }
    }
    std::process::exit(42);
}

/// Installs a filter that allows everything, or with `listener` one that hands its decisions to this process.
pub(crate) fn stack_filter(listener: bool) -> Result<c_long, i32> {
    let action = libc::SECCOMP_RET_ALLOW;
    let program = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_ptr().cast_mut() };
    let flags = if listener { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { libc::SECCOMP_FILTER_FLAG_TSYNC };
    call(libc::SYS_seccomp, &[libc::SECCOMP_SET_MODE_FILTER.into(), flags as c_long, pointer(&filter)])
}
