//! Who is at the other end of a socket.
//!
//! Root inside a container has the caller's user id, so that the id alone says nothing. What tells them apart is the user
//! namespace: ours is one that no process of a container can ever be in.

use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, getuid, pidfd_open};

/// Whether the process that connected, or listens, is one of the caller's own outside of any container; gives its pid.
pub(crate) fn trusted(socket: &impl AsFd) -> io::Result<Pid> {
    let peer = sockopt::socket_peercred(socket)?;
    if peer.uid != getuid() {
        return Err(denied(format!("it is of user {}", peer.uid.as_raw())));
    }
    let pidfd = pidfd(socket, peer.pid)?;
    let namespace = |process: String| -> io::Result<Metadata> { std::fs::metadata(format!("/proc/{process}/ns/user")) };
    let (seen, maps) = (namespace(peer.pid.to_string()), kinship(&peer.pid.to_string()));
    // While the process lives, its pid is no other's: what was just read was its own.
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    if poll(&mut ended, Some(&Timespec::default()))? > 0 {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "it has ended"));
    }
    let same = match (seen, maps) {
        (Ok(theirs), _) => {
            let ours = namespace("self".to_owned())?;
            (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())
        }
        // Whoever is held by landlock may not look at that.
        (Err(error), theirs) if error.kind() == ErrorKind::PermissionDenied => theirs? == kinship("self")?,
        (Err(error), _) => return Err(error),
    };
    if same {
        Ok(peer.pid)
    } else {
        Err(denied(format!("process {} is in another user namespace, such as a container's", peer.pid)))
    }
}

/// Which ids a process's user namespace has, and how deep its pid namespace is below ours. A namespace within ours is shown
/// with ids of ours, so that it could have the same only if ours had been mapped onto itself: but nobody below the host's root
/// can map all ids, and containers are deeper by a pid namespace at least.
fn kinship(process: &str) -> io::Result<(String, String, usize)> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}"));
    let status = read("status")?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids = pids.ok_or_else(|| io::Error::other("the kernel does not say in which pid namespace a process is"))?;
    Ok((read("uid_map")?, read("gid_map")?, pids.split_whitespace().count()))
}

/// The very process that connected (`SO_PEERPIDFD`, Linux 6.5); before, the one that has its pid now.
fn pidfd(socket: &impl AsFd, pid: Pid) -> io::Result<OwnedFd> {
    match getsockopt(&socket.as_fd(), PeerPidfd) {
        Ok(pidfd) => Ok(pidfd),
        Err(nix::errno::Errno::ENOPROTOOPT) => Ok(pidfd_open(pid, PidfdFlags::empty())?),
        Err(error) => Err(error.into()),
    }
}

fn denied(why: String) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_tells_namespaces_apart_under_landlock_does() {
        let own = kinship("self").unwrap();
        for options in [
            &["--user"][..],
            &["--user", "--map-root-user"],
            &["--user", "--map-current-user"],
            &["--pid", "--fork", "--user"],
        ] {
            let mut child = Command::new("unshare");
            let child = child.args(options).args(["perl", "-e", "$| = 1; print 'x'; <STDIN>"]);
            let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
            let pid = child.id().to_string();
            let below = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            let pid = below.split_whitespace().next().unwrap_or(&pid);
            assert_ne!(kinship(pid).unwrap(), own, "{options:?}");
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(kinship(&child.id().to_string()).unwrap(), own);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn trusts_our_own_and_nobody_in_a_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let own = rustix::process::getpid();
        assert_eq!((trusted(&stream).unwrap(), trusted(&client).unwrap()), (own, own));

        let program =
            "use Socket; socket(S,AF_UNIX,SOCK_STREAM,0); connect(S,pack_sockaddr_un($ARGV[0])) or die; <STDIN>";
        let child = Command::new("unshare")
            .args(["--user", "--map-root-user", "perl", "-e", program])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn();
        let mut child = child.unwrap();
        let (stream, _) = listener.accept().unwrap();
        let refused = trusted(&stream).unwrap_err();
        assert!(refused.to_string().contains("another user namespace"), "{refused}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(trusted(&stream).is_err());
    }
}
