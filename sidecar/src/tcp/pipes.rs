//! Pipes that bytes are spliced through, kept by one data thread for its bulky connections. In: a wish. Out: a
//! pipe, or none, and then the bytes are copied. Never holds bytes while it is in stock.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// Pipes that one thread makes at most: two descriptors each. A connection beyond them is copied.
const MOST: usize = 32;
/// What a pipe may hold. The memory of the pipes of one user is bounded (`pipe-user-pages-soft`), for all
/// of a user's programs together.
const CAPACITY: usize = 256 * 1024;

/// The pipes of one data thread.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    stock: Vec<Pipe>,
    alive: Rc<Cell<usize>>,
}

/// One pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
    held: usize,
    alive: Rc<Cell<usize>>,
}

impl Pipes {
    /// An empty pipe, if there may be one more.
    pub(super) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.stock.pop() {
            return Some(pipe);
        }
        if self.alive.get() >= MOST {
            return None;
        }
        let (output, input) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        // Smaller is slower and nothing worse.
        let _ = rustix::pipe::fcntl_setpipe_size(&input, CAPACITY);
        self.alive.set(self.alive.get() + 1);
        Some(Pipe { output, input, held: 0, alive: Rc::clone(&self.alive) })
    }

    /// Takes back `pipe`. One with bytes in it, whose connection broke, is closed.
    pub(super) fn put(&mut self, pipe: Pipe) {
        if pipe.held == 0 {
            self.stock.push(pipe);
        }
    }
}

impl Pipe {
    /// How many bytes are in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what has arrived at `from` into the pipe, which must be empty; `Ok(0)` at its end.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>) -> Result<usize, Errno> {
        let n = splice(from, &self.input, CAPACITY)?;
        self.held += n;
        Ok(n)
    }

    /// Moves what is in the pipe to `to`, as much as it takes.
    pub(super) fn drain(&mut self, to: BorrowedFd<'_>) -> Result<usize, Errno> {
        let n = splice(&self.output, to, self.held)?;
        self.held -= n;
        Ok(n)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

fn splice(from: impl AsFd, to: impl AsFd, most: usize) -> Result<usize, Errno> {
    loop {
        match rustix::pipe::splice(&from, None, &to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
