//! Receives a payload that is larger than the pool's memory, on one thread, while a task ticks every millisecond; then
//! makes it one view, searches it, sends it back and makes it a file. Prints what each step took.
//!
//! ```sh
//! cargo run --release --example spill -- /var/tmp
//! ```
//!
//! With less memory than the payload, as root:
//!
//! ```sh
//! cargo build --release --example spill
//! mkdir /sys/fs/cgroup/spill && echo 256M > /sys/fs/cgroup/spill/memory.max    # version 2
//! sh -c 'echo $$ > /sys/fs/cgroup/spill/cgroup.procs; exec target/release/examples/spill /var/tmp'
//! ```
//!
//! `--file` receives into a file of its own (`Rope::for_file`), which gets its name without a copy. For comparison,
//! `--splice` receives by splice(2) from the socket to a file, and `--memory` into a pool that holds it all, whose ticks
//! show what the machine adds.
//!
//! `--turns 5` receives five times in each of these ways, in turns, and prints the throughput of each as a part of that
//! of splice: until the last byte is received, and until the disk has all of them.

#[path = "../http_upload/numbers.rs"]
mod numbers;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use clap::Parser;
use nix::fcntl::{SpliceFFlags, splice};
use ropewalk::{Pool, ReadRope, Rope, WriteRope};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Receives more than there is memory for, while a task ticks
#[derive(Clone, Parser)]
struct Options {
    /// Where to spill to
    directory: PathBuf,
    /// Bytes of the payload
    #[arg(long, default_value = "1GiB", value_parser = payload)]
    size: ByteSize,
    /// Bytes of memory of the pool
    #[arg(long, default_value = "64MiB", value_parser = numbers::memory)]
    capacity: ByteSize,
    /// Receive into a file of its own
    #[arg(long, conflicts_with_all = ["splice", "memory"])]
    file: bool,
    /// Receive by splice(2) into a file
    #[arg(long, conflicts_with = "memory")]
    splice: bool,
    /// Receive into memory only
    #[arg(long)]
    memory: bool,
    /// Compare the ways, so many times each
    #[arg(long, value_name = "COUNT", default_value = "0")]
    turns: usize,
    /// Send to this address, in a process of its own
    #[arg(long, hide = true)]
    peer: Option<SocketAddr>,
}

/// Bytes of which the payload consists, again and again, but for its end.
const BLOCK: usize = 1 << 20;

/// The end of the payload, which is nowhere else in it.
const END: &[u8] = b"the end of the payload, which is searched for";

/// Parses the bytes of a payload: at least its end.
fn payload(text: &str) -> Result<ByteSize, String> {
    numbers::bytes(text, END.len() as u64, ByteSize::tib(1))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spill: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(options: &Options) -> anyhow::Result<()> {
    let size = usize::try_from(options.size.0)?;
    if let Some(address) = options.peer {
        return peer(address, size);
    }
    if options.turns > 0 {
        return compare(options, size).await;
    }
    // What cannot be had is an error before there is a peer.
    let rope = rope(options)?;
    let (socket, mut peer) = peer_of(options).await?;
    if options.splice {
        splice_all(&socket, &options.directory, size).await?;
        // Nothing goes back.
        peer.kill()?;
        peer.wait()?;
        return Ok(());
    }
    let rope = receive(&socket, rope, size).await?;
    let stats = rope.pool().context("a rope in a pool")?.stats();
    println!("in memory {}, spilled {}", ByteSize(stats.in_use), ByteSize(stats.spilled));

    let start = Instant::now();
    let view = rope.finalize()?;
    println!("view: {:?}, copied {}, {} maps", start.elapsed(), view.copied_bytes(), view.num_maps());
    let start = Instant::now();
    let found = Rope::from(view.clone()).find(END).context("the end is not found")?;
    report("searched", size, start);
    ensure!(found == size - END.len(), "found at {found}");
    let path = options.directory.join("spill.persisted");
    let start = Instant::now();
    view.persist(&path)?;
    report("persisted", size, start);
    std::fs::remove_file(&path)?;
    let start = Instant::now();
    socket.write_all_rope(&mut view.cursor()).await?;
    drop(socket);
    ensure!(peer.wait()?.success(), "the peer failed");
    report("sent back", size, start);
    Ok(())
}

/// A socket to a process that sends the payload.
async fn peer_of(options: &Options) -> anyhow::Result<(TcpStream, Child)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let peer = Command::new(std::env::current_exe()?)
        .arg(&options.directory)
        .args(["--size", &options.size.0.to_string(), "--peer", &listener.local_addr()?.to_string()])
        .spawn()?;
    Ok((listener.accept().await?.0, peer))
}

/// An empty rope that receives in the way that is asked for.
fn rope(options: &Options) -> anyhow::Result<Rope> {
    if options.file {
        return Ok(Rope::for_file(&options.directory, options.size.0)?);
    }
    let pool = if options.memory {
        Pool::options().capacity(2 * options.size.0)
    } else {
        Pool::options().capacity(options.capacity.0).spill(&options.directory, 2 * options.size.0)
    };
    Ok(Rope::in_pool(&pool.create()?))
}

/// Receives the payload, and prints how late the ticks were meanwhile.
async fn receive(socket: &TcpStream, mut rope: Rope, size: usize) -> anyhow::Result<Rope> {
    let ticks = ticks();
    let start = Instant::now();
    while rope.len() < size && socket.read_rope(&mut rope).await? > 0 {
        // tokio lets others run after 128 reads, of up to 1 MiB each.
        tokio::task::yield_now().await;
    }
    report("received", size, start);
    print_ticks("receiving", ticks)?;
    ensure!(rope.len() == size, "{} bytes of {size} came", rope.len());
    Ok(rope)
}

/// Receives in each way in turns; prints the medians of their throughput.
#[allow(clippy::cast_precision_loss)] // two decimals are shown
async fn compare(options: &Options, size: usize) -> anyhow::Result<()> {
    let ways = ["splice", "spill", "file"];
    let mut times: [[Vec<Duration>; 2]; 3] = Default::default();
    for _ in 0..options.turns {
        for (way, [received, stored]) in ways.into_iter().zip(&mut times) {
            let (socket, mut peer) = peer_of(options).await?;
            let start = Instant::now();
            if way == "splice" {
                let file = splice_all(&socket, &options.directory, size).await?;
                received.push(start.elapsed());
                file.sync_data()?;
            } else {
                let rope = rope(&Options { file: way == "file", ..options.clone() })?;
                let rope = receive(&socket, rope, size).await?;
                received.push(start.elapsed());
                rope.pool().context("a rope in a pool")?.trim()?;
            }
            stored.push(start.elapsed());
            peer.kill()?;
            peer.wait()?;
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let medians = times.map(|mut both| both.each_mut().map(median));
    for (way, took) in ways.into_iter().zip(medians) {
        let rate = |at: usize| size as f64 / f64::from(1 << 20) / took[at];
        let part = |at: usize| medians[0][at] / took[at];
        println!(
            "{way}: received {:.0} MiB/s, {:.2} of splice; on the disk {:.0} MiB/s, {:.2} of splice",
            rate(0),
            part(0),
            rate(1),
            part(1)
        );
    }
    Ok(())
}

/// Receives by splice(2) through a pipe.
async fn splice_all(socket: &TcpStream, directory: &Path, size: usize) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(0o20_200_000).open(directory)?; // O_TMPFILE
    let (reader, writer) = nix::unistd::pipe()?;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20))?;
    let ticks = ticks();
    let (start, mut got) = (Instant::now(), 0);
    while got < size {
        socket.readable().await?;
        let take = || Ok(splice(socket, None, &writer, None, 1 << 20, SpliceFFlags::SPLICE_F_NONBLOCK)?);
        match socket.try_io(Interest::READABLE, take) {
            Ok(0) => break,
            Ok(count) => {
                let mut left = count;
                while left > 0 {
                    left -= splice(&reader, None, &file, None, left, SpliceFFlags::empty())?;
                }
                got += count;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        tokio::task::yield_now().await;
    }
    report("spliced", got, start);
    print_ticks("receiving", ticks)?;
    Ok(file)
}

/// Sends the payload, then checks that the same comes back.
fn peer(address: SocketAddr, size: usize) -> anyhow::Result<()> {
    let mut socket = std::net::TcpStream::connect(address)?;
    let block: Vec<u8> = (0..BLOCK).map(|at| (at * 31 % 251) as u8).collect();
    let expected = |at: usize| {
        let (len, body) = (BLOCK.min(size - at), size - END.len());
        let mut bytes = block[..len].to_vec();
        for (offset, byte) in bytes.iter_mut().enumerate().filter(|(offset, _)| at + offset >= body) {
            *byte = END[at + offset - body];
        }
        bytes
    };
    for at in (0..size).step_by(BLOCK) {
        socket.write_all(&expected(at))?;
    }
    let mut got = vec![0; BLOCK];
    for at in (0..size).step_by(BLOCK) {
        let want = expected(at);
        std::io::Read::read_exact(&mut socket, &mut got[..want.len()]).context("nothing came back")?;
        ensure!(got[..want.len()] == want, "other bytes came back, from {at} on");
    }
    Ok(())
}

/// How late each tick was, and how much of that the thread did not wait for a CPU.
type Ticks = (JoinHandle<()>, std::sync::mpsc::Receiver<[Duration; 2]>);

fn ticks() -> Ticks {
    let (late, lateness) = std::sync::mpsc::channel();
    let mut interval = tokio::time::interval(Duration::from_millis(1));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let task = tokio::spawn(async move {
        let mut looks = VecDeque::from([(Instant::now(), waited_for_cpu())]);
        loop {
            let due = interval.tick().await.into_std();
            // The last look before the tick was due.
            while looks.get(1).is_some_and(|next| next.0 <= due) {
                looks.pop_front();
            }
            let (now, waited) = (Instant::now(), waited_for_cpu());
            let lateness = now.duration_since(due);
            let own = lateness.saturating_sub(waited - looks[0].1);
            looks.push_back((now, waited));
            if late.send([lateness, own]).is_err() {
                return;
            }
        }
    });
    (task, lateness)
}

/// How long this thread was ready to run and had no CPU: proc_pid_schedstat(5).
fn waited_for_cpu() -> Duration {
    let waited = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').nth(1)?.parse().ok()
    };
    Duration::from_nanos(waited().unwrap_or(0))
}

fn print_ticks(what: &str, (task, lateness): Ticks) -> anyhow::Result<()> {
    task.abort();
    let late: Vec<[Duration; 2]> = lateness.try_iter().collect();
    print_late(what, late.iter().map(|late| late[0]).collect())?;
    print_late("the same, but for what other threads had the CPU", late.iter().map(|late| late[1]).collect())
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // parts of a count
fn print_late(what: &str, mut late: Vec<Duration>) -> anyhow::Result<()> {
    late.sort();
    let part = |part: f64| late.get((late.len() as f64 * part) as usize).or(late.last());
    let [median, p99, p999] = [0.5, 0.99, 0.999].map(|of| part(of).copied().unwrap_or_default());
    let max = late.last().context("no tick")?;
    println!(
        "ticks, {what}: {}, late by p50 {median:.2?} p99 {p99:.2?} p99.9 {p999:.2?} max {max:.2?}",
        late.len()
    );
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // one decimal is shown
fn report(what: &str, bytes: usize, start: Instant) {
    let took = start.elapsed();
    println!("{what}: {took:.2?}, {:.0} MiB/s", bytes as f64 / f64::from(1 << 20) / took.as_secs_f64());
}
