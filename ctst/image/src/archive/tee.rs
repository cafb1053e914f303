//! One input for two threads: each gets all of it at its own pace, and whoever is ahead reads. Both are busy for as long as
//! there is work, whichever of them has more of it, and the input is read once: what is hashed is what is unpacked.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::stream::{Chunk, Input};
use crate::Error;

/// Chunks that one may be ahead of the other. It then sleeps until half of them are taken: being woken takes as long as
/// reading one.
const WINDOW: usize = 16;

/// One of the two ends.
pub(crate) struct Tee<I> {
    shared: Arc<Shared<I>>,
    own: usize,
    is_done: bool,
}

struct Shared<I> {
    state: Mutex<State<I>>,
    changed: Condvar,
}

struct State<I> {
    /// Away while somebody reads.
    input: Option<I>,
    is_at_end: bool,
    /// Who is ahead, and what the other has still to take.
    ahead: usize,
    window: VecDeque<Chunk>,
    /// One has left before the end.
    is_broken: bool,
}

/// Both ends of an input. An error is told to the one who meets it, and the other finds the end, as it does when the first
/// is dropped before the end.
pub(crate) fn tee<I: Input>(input: I) -> [Tee<I>; 2] {
    let window = VecDeque::with_capacity(WINDOW);
    let state = State { input: Some(input), is_at_end: false, ahead: 0, window, is_broken: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    [0, 1].map(|own| Tee { shared: Arc::clone(&shared), own, is_done: false })
}

impl<I> Shared<I> {
    /// That a thread has panicked is told by joining it.
    fn lock(&self) -> MutexGuard<'_, State<I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: Input> Input for Tee<I> {
    fn next(&mut self) -> Result<Option<Chunk>, Error> {
        let Shared { changed, .. } = &*self.shared;
        let mut state = self.shared.lock();
        let mut input = loop {
            let State { input, is_at_end, ahead, window, is_broken } = &mut *state;
            if *ahead != self.own
                && !*is_broken
                && let Some(chunk) = window.pop_front()
            {
                if window.len() == WINDOW / 2 {
                    changed.notify_one();
                }
                return Ok(Some(chunk));
            }
            if *is_at_end || *is_broken {
                self.is_done = true;
                return Ok(None);
            }
            if window.len() < WINDOW
                && let Some(input) = input.take()
            {
                break input;
            }
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let chunk = input.next()?;
        let mut state = self.shared.lock();
        state.input = Some(input);
        state.ahead = self.own;
        match &chunk {
            Some(chunk) => state.window.push_back(chunk.clone()),
            None => (self.is_done, state.is_at_end) = (true, true),
        }
        changed.notify_one();
        Ok(chunk)
    }
}

impl<I> Drop for Tee<I> {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.lock().is_broken = true;
            self.shared.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::archive::stream::FileInput;

    /// All that one end gives, with pauses by which the other gets ahead.
    fn drain(mut end: impl Input, pause: u64) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(chunk) = end.next()? {
            all.extend_from_slice(&chunk);
            thread::sleep(Duration::from_micros(pause));
        }
        Ok(all)
    }

    #[test]
    fn both_get_everything_whoever_is_faster() {
        let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let file = file.into();
        for (one, other) in [(0, 0), (0, 500), (500, 0)] {
            let [left, right] = tee(FileInput::new(&file, Path::new("a")));
            let (left, right) = thread::scope(|scope| {
                let left = scope.spawn(move || drain(left, one));
                let right = drain(right, other).unwrap();
                (left.join().unwrap().unwrap(), right)
            });
            assert!(left == bytes && right == bytes, "{one} {other}");
        }
    }

    #[test]
    fn one_that_leaves_or_fails_ends_the_other() {
        struct Failing(usize);
        impl Input for Failing {
            fn next(&mut self) -> Result<Option<Chunk>, Error> {
                self.0 -= 1;
                if self.0 == 0 { Err(Error::Changed("a".into())) } else { Ok(Some(Chunk::default())) }
            }
        }
        let [mut left, right] = tee(Failing(usize::MAX));
        thread::scope(|scope| {
            let right = scope.spawn(move || drain(right, 0));
            left.next().unwrap();
            drop(left);
            right.join().unwrap().unwrap();
        });
        let [left, right] = tee(Failing(100));
        thread::scope(|scope| {
            let right = scope.spawn(move || drain(right, 0));
            let left = drain(left, 10);
            assert_eq!(usize::from(left.is_err()) + usize::from(right.join().unwrap().is_err()), 1);
        });
    }
}
