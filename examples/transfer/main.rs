//! Moves a payload of any size over TCP through ropes, and shows what that costs beside the usual ways.
//!
//! # Wire format of `send` and `recv`
//!
//! The length need not be known in advance, and a stream that is cut anywhere is detected: only the end
//! marker completes a payload. Integers are big-endian.
//!
//! ```text
//!  sender ─► ┌──────────┬─────────────┬────────────┬─── ··· ───┬─────────┐
//!            │ ropewalk │ length: u32 │ that many  │ more of   │ 0: u32  │
//!            │ 8 bytes  │ at least 1  │ bytes      │ these     │ the end │
//!            └──────────┴─────────────┴────────────┴───────────┴─────────┘
//!                                    ┌────────────────────────────┐
//!                                    │ bytes of the payload: u64  │ ◄─ receiver
//!                                    └────────────────────────────┘
//! ```
//!
//! The receiver answers once the payload is stored, and both sides close. If anything fails, the receiver
//! resets the connection instead. A sender that gets no answer fails, whatever it has sent. An empty
//! payload is the magic and the end marker. The receiver reads nothing after the end marker.
//!
//! With `--raw`, for peers such as `nc`, the stream is the payload alone, without magic, lengths and answer.
//! The end of such a stream does not tell a complete payload from a cut one, so that `recv --raw` needs
//! `--expect`.

use std::process::ExitCode;

fn main() -> ExitCode {
    transfer::main()
}
