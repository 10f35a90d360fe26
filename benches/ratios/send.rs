//! Sending what lies in many segments.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ropewalk::Rope;
use ropewalk_bench::measure::{Contender, in_turn, timed};
use ropewalk_bench::transmit::{segments, senders};

use super::{Bar, Tables};

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    const LARGE: usize = 256 << 20;
    for (segment, total) in [(100, LARGE / 16), (1000, LARGE), (10_000, LARGE), (100_000, LARGE)] {
        let segments = segments(total, segment);
        let is_far = |name: &str| ["send each", "buf-list"].iter().any(|far| name.starts_with(far));
        let (far, near): (Vec<_>, Vec<_>) =
            senders(&segments).into_iter().partition(|(name, _)| is_far(name));
        let far = senders(&segments).into_iter().take(1).chain(far).collect();
        let many = if segment == 1000 { 61 } else { 15 };
        tables.near_and_far("send, by segment", segment, [(near, many), (far, 7)], |name| match name {
            _ if segment != 1000 => Bar::None,
            "send each" => Bar::AtLeast(15.0),
            "writev by hand" => Bar::AtLeast(1.0 / 1.05),
            name if name.contains("write_all") => Bar::AtLeast(1.0),
            _ => Bar::None,
        });
    }
    byte_by_byte(tables)
}

/// A descriptor that takes one byte of all that is offered: does it matter how much that is?
fn byte_by_byte(tables: &mut Tables) -> io::Result<()> {
    const BYTES: usize = 20_000;
    for segment in [1, 100] {
        let send = |bytes: usize| -> Box<dyn FnMut() -> f64> {
            Box::new(move || {
                let mut rope: Rope = segments(bytes, segment).into_iter().collect();
                trickle(&mut rope).expect("the file takes it")
            })
        };
        let mut contenders: [Contender<'_>; 2] =
            [("n bytes".to_owned(), send(BYTES)), ("2n bytes".to_owned(), send(2 * BYTES))];
        let timings = in_turn(&mut contenders, tables.rounds(9));
        let bar = |name: &str| if name == "2n bytes" { Bar::AtMost(2.1) } else { Bar::None };
        tables.compare("send, one byte a call", segment, &timings, bar);
    }
    Ok(())
}

/// writev(2) to a file stops where `RLIMIT_FSIZE` does; the file is taken back to one byte before it.
fn trickle(rope: &mut Rope) -> io::Result<f64> {
    const LIMIT: u64 = 1 << 20;
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
    let name = std::env::temp_dir().join(format!("ropewalk-bench-{}", std::process::id()));
    let mut file = File::create(&name)?;
    std::fs::remove_file(&name)?;
    setrlimit(Resource::RLIMIT_FSIZE, LIMIT, hard)?;
    let mut result = Ok(());
    let seconds = timed(|| {
        while result.is_ok() && !rope.is_empty() {
            result = one_byte(&mut file, LIMIT - 1, rope);
        }
    });
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard)?;
    result.map(|()| seconds)
}

fn one_byte(file: &mut File, at: u64, rope: &mut Rope) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    assert_eq!(rope.writev_to(&*file)?, 1, "the file takes one byte");
    Ok(())
}
