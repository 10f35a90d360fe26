//! A way to do a workload's work, and the round in which it does it.

use std::collections::VecDeque;
use std::future::Future;
use std::iter;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::ensure;
use bytes::{Bytes, BytesMut};
use ropewalk::{Rope, View};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::case::{Case, Variant};
use crate::meter::Meter;
use crate::pattern::{self, Check};

/// A round that is running.
pub(crate) type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One way to do a workload's work: a name, and the code of one round.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    run: Box<dyn Fn(Arc<Round>) -> Running>,
}

impl Way {
    pub(crate) fn new<F>(name: &'static str, run: impl Fn(Arc<Round>) -> F + 'static) -> Way
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Way { name, run: Box::new(move |round| Box::pin(run(round))) }
    }

    /// A way that serves each connection in a task of its own.
    pub(crate) fn per_connection<F>(
        name: &'static str,
        serve: impl Fn(TcpStream, Arc<Round>) -> F + Send + Sync + Copy + 'static,
    ) -> Way
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Way::new(name, move |round: Arc<Round>| async move {
            in_tasks(round.streams().into_iter().map(|stream| serve(stream, Arc::clone(&round)))).await
        })
    }

    pub(crate) fn run(&self, round: Arc<Round>) -> Running {
        (self.run)(round)
    }
}

/// Runs futures as tasks until all have ended, or one has failed.
pub(crate) async fn in_tasks<F>(futures: impl Iterator<Item = F>) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut tasks: JoinSet<_> = futures.collect();
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// What a way is given for one round.
pub(crate) struct Round {
    pub(crate) case: Case,
    pub(crate) check: Check,
    pub(crate) listener: Arc<TcpListener>,
    /// Where the traffic process listens.
    pub(crate) peer: SocketAddr,
    pub(crate) meter: Meter,
    pub(crate) streams: Mutex<Vec<TcpStream>>,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// Connections on which all messages have arrived.
    complete: AtomicUsize,
    all_have_arrived: Notify,
}

impl Round {
    pub(crate) fn new(
        case: Case,
        check: Check,
        listener: Arc<TcpListener>,
        peer: SocketAddr,
        meter: Meter,
        streams: Vec<TcpStream>,
    ) -> Round {
        let (messages, bytes, complete, all_have_arrived) = Default::default();
        let streams = Mutex::new(streams);
        Round { case, check, listener, peer, meter, streams, messages, bytes, complete, all_have_arrived }
    }

    /// The connections that were accepted before the clock started, in the order in which they were made.
    pub(crate) fn streams(&self) -> Vec<TcpStream> {
        std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts and checks the messages of one connection.
    pub(crate) fn connection<T: Payload>(self: &Arc<Round>) -> Connection<T> {
        Connection { round: Arc::clone(self), messages: 0, bytes: 0, held: VecDeque::new() }
    }

    /// Counts messages that the traffic process checks, not this one.
    pub(crate) fn passed(&self, messages: usize, bytes: usize) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// # Errors
    ///
    /// If there were more or fewer messages, or bytes, than were sent.
    pub(crate) fn assert_complete(&self, messages: usize, bytes: usize) -> anyhow::Result<()> {
        let seen = (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        ensure!(seen == (messages, bytes), "messages and bytes: {seen:?} of {:?}", (messages, bytes));
        Ok(())
    }

    /// Waits for the last message of the last connection.
    pub(crate) async fn all_have_arrived(&self) {
        self.all_have_arrived.notified().await;
    }

    /// With idle connections a round ends with its last message: to close the others is not measured.
    fn connection_is_complete(&self) -> anyhow::Result<()> {
        let complete = 1 + self.complete.fetch_add(1, Ordering::Relaxed);
        if matches!(self.case.variant, Variant::Idle(_)) && complete == self.case.connections {
            self.meter.stop()?;
            self.all_have_arrived.notify_one();
        }
        Ok(())
    }
}

/// The messages of one connection: checks them, counts them, and holds the last few if the case says so.
pub(crate) struct Connection<T> {
    round: Arc<Round>,
    messages: usize,
    bytes: usize,
    held: VecDeque<T>,
}

impl<T: Payload> Connection<T> {
    /// The next message has arrived. It is dropped here, unless it is held.
    pub(crate) fn took(&mut self, message: T) -> anyhow::Result<()> {
        self.saw(&message)?;
        let held = self.round.case.variant.held();
        if held > 0 {
            if self.held.len() == held {
                self.held.pop_front();
            }
            self.held.push_back(message);
        }
        Ok(())
    }

    /// The next message has arrived in memory that is used again.
    pub(crate) fn saw(&mut self, message: &T) -> anyhow::Result<()> {
        let phase = pattern::phase(self.messages, message.bytes());
        let checked = pattern::check(message.pieces(), phase, self.round.check)?;
        ensure!(checked == message.bytes(), "a message has {checked} of {} bytes", message.bytes());
        self.messages += 1;
        self.bytes += checked;
        if self.messages == self.round.case.messages {
            self.round.connection_is_complete()?;
        }
        Ok(())
    }
}

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        self.round.passed(self.messages, self.bytes);
    }
}

/// What a way makes of a message.
pub(crate) trait Payload: Send + 'static {
    fn bytes(&self) -> usize;
    fn pieces(&self) -> impl Iterator<Item = &[u8]>;
}

macro_rules! contiguous {
    ($($type:ty),*) => {$(
        impl Payload for $type {
            fn bytes(&self) -> usize {
                self.len()
            }

            fn pieces(&self) -> impl Iterator<Item = &[u8]> {
                iter::once(&self[..])
            }
        }
    )*};
}

contiguous!(Bytes, BytesMut, Vec<u8>, View);

impl Payload for Rope {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks()
    }
}
