//! What traffic a row of the tables stands for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest message of mixed traffic.
pub(crate) const MAX_MIXED: usize = 16 << 20;

/// One row: the same traffic for every way under every allocator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) workload: String,
    pub(crate) sizes: Sizes,
    /// Connections that carry messages.
    pub(crate) connections: usize,
    /// Messages on each of them in one round.
    pub(crate) messages: usize,
    pub(crate) variant: Variant,
}

/// The sizes of messages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Sizes {
    Fixed(usize),
    LogNormal { median: usize, sigma: f64 },
}

/// What else distinguishes a case from others of its workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Variant {
    /// Messages are dropped at once.
    Dropped,
    /// The last messages of each connection are held, so many of them.
    Held(usize),
    /// HTTP: the length is in the header.
    ContentLength,
    /// HTTP: the length is unknown until the end.
    Chunked,
    /// TLS: many uploads on a connection, each after its length.
    Announced,
    /// TLS: one upload a connection, which ends with it.
    UntilEnd,
    /// Proxy: from the client to the server only.
    OneWay,
    /// Proxy: as many bytes each way.
    BothWays,
    /// Broadcast: every reader reads as fast as it can.
    Fast,
    /// Broadcast: every second reader pauses after each 64 KiB.
    HalfSlow,
    /// So many further connections carry nothing.
    Idle(usize),
}

/// How much traffic a round has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) quick: bool,
    /// Bytes that a round aims at.
    pub(crate) bytes: usize,
    /// Messages that a round has at most.
    pub(crate) messages: usize,
}

impl Scale {
    #[must_use]
    pub(crate) fn new(quick: bool) -> Scale {
        if quick {
            Scale { quick, bytes: 8 << 20, messages: 20_000 }
        } else {
            Scale { quick, bytes: 64 << 20, messages: 200_000 }
        }
    }

    /// The scale for messages that are answered one by one: those take longer.
    #[must_use]
    pub(crate) fn answered(self) -> Scale {
        Scale { messages: self.messages / 50, ..self }
    }

    /// A case with as many messages as make a round of this scale.
    #[must_use]
    pub(crate) fn case(&self, workload: &str, sizes: Sizes, connections: usize, variant: Variant) -> Case {
        let round = (self.bytes / sizes.mean().max(1)).min(self.messages);
        let messages = (round / connections).max(2 * variant.held()).max(1);
        Case { workload: workload.to_owned(), sizes, connections, messages, variant }
    }
}

impl Case {
    /// The lengths of the messages of one connection, the same in every round.
    pub(crate) fn lengths(&self, connection: usize) -> impl Iterator<Item = usize> + use<> {
        let (sizes, mut random) = (self.sizes, fastrand::Rng::with_seed(connection as u64));
        (0..self.messages).map(move |_| sizes.draw(&mut random))
    }

    /// Bytes of all messages of a round.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        (0..self.connections).flat_map(|connection| self.lengths(connection)).sum()
    }

    /// The most bytes of payload that can be in use at a moment: on each connection the messages that are
    /// held and the one that arrives.
    #[must_use]
    pub(crate) fn live(&self) -> usize {
        let of_connection = |connection| {
            let lengths: Vec<usize> = self.lengths(connection).collect();
            let together = (self.variant.held() + 1).min(lengths.len().max(1));
            lengths.windows(together).map(|window| window.iter().sum()).max().unwrap_or(0)
        };
        (0..self.connections).map(of_connection).sum()
    }

    /// Connections that the measured process accepts before the clock starts.
    #[must_use]
    pub(crate) fn accepted_before(&self) -> usize {
        match (self.workload.as_str(), self.variant) {
            ("downloads", _) | (_, Variant::UntilEnd) => 0,
            ("broadcast", _) => self.connections + 1, // the publisher
            (_, Variant::Idle(idle)) => self.connections + idle,
            _ => self.connections,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.connections == 1 { "" } else { "s" };
        write!(f, "{}, {} connection{plural}, {}", self.sizes, self.connections, self.variant)
    }
}

impl Sizes {
    /// The mean, without the bound on mixed sizes.
    #[must_use]
    pub(crate) fn mean(self) -> usize {
        match self {
            Sizes::Fixed(size) => size,
            Sizes::LogNormal { median, sigma } => (median as f64 * (sigma * sigma / 2.0).exp()) as usize,
        }
    }

    fn draw(self, random: &mut fastrand::Rng) -> usize {
        match self {
            Sizes::Fixed(size) => size,
            Sizes::LogNormal { median, sigma } => {
                let drawn = median as f64 * (sigma * normal(random)).exp();
                (drawn as usize).clamp(1, MAX_MIXED)
            }
        }
    }
}

/// A normally distributed number, by Box and Muller.
fn normal(random: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(bytes) => f.write_str(&size(*bytes)),
            Sizes::LogNormal { median, sigma } => write!(f, "mixed, median {}, sigma {sigma}", size(*median)),
        }
    }
}

/// `64 B`, `4 KiB`, `16 MiB`.
#[must_use]
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

impl Variant {
    /// Messages of each connection that are held.
    #[must_use]
    pub(crate) fn held(self) -> usize {
        if let Variant::Held(held) = self { held } else { 0 }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Held(held) => return write!(f, "last {held} held"),
            Variant::Idle(idle) => return write!(f, "beside {idle} idle ones"),
            Variant::Dropped => "dropped at once",
            Variant::ContentLength => "Content-Length",
            Variant::Chunked => "chunked",
            Variant::Announced => "length known",
            Variant::UntilEnd => "until the end of the stream",
            Variant::OneWay => "one way",
            Variant::BothWays => "both ways",
            Variant::Fast => "fast",
            Variant::HalfSlow => "half of them slow",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_sizes_are_log_normal() {
        let sizes = Sizes::LogNormal { median: 64 << 10, sigma: 1.5 };
        let case = Case { messages: 10_001, ..Scale::new(true).case("frames", sizes, 1, Variant::Dropped) };
        let mut lengths: Vec<usize> = case.lengths(0).collect();
        lengths.sort_unstable();
        assert!((60 << 10..68 << 10).contains(&lengths[5_000]), "median {}", lengths[5_000]);
        let below = lengths.partition_point(|&len| (len as f64) < (64 << 10) as f64 * 1.5_f64.exp());
        assert!((8_300..8_500).contains(&below), "one sigma above the median are 84 %, not {below}");
    }

    #[test]
    fn live_bytes_count_what_is_held_and_what_arrives() {
        let case = Scale::new(true).case("frames", Sizes::Fixed(1 << 20), 2, Variant::Held(4));
        assert_eq!((case.messages, case.live(), case.bytes()), (8, 10 << 20, 16 << 20));
        let case = Scale::new(true).case("frames", Sizes::Fixed(1 << 20), 2, Variant::Dropped);
        assert_eq!((case.messages, case.live()), (4, 2 << 20));
    }
}
