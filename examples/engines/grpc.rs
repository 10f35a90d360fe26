//! tonic, with messages that are bytes.

use bytes::{Buf, BufMut};
use ropewalk::Rope;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// A codec for methods whose requests and responses are bytes, for `tonic::client::Grpc` and `tonic::server::Grpc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RopeMessages;

impl Codec for RopeMessages {
    type Encode = Rope;
    type Decode = Rope;
    type Encoder = RopeMessages;
    type Decoder = RopeMessages;

    fn encoder(&mut self) -> RopeMessages {
        RopeMessages
    }

    fn decoder(&mut self) -> RopeMessages {
        RopeMessages
    }
}

impl Encoder for RopeMessages {
    type Item = Rope;
    type Error = Status;

    /// Copies once, into tonic's buffer.
    fn encode(&mut self, message: Rope, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for RopeMessages {
    type Item = Rope;
    type Error = Status;

    /// Keeps tonic's buffer: no copy.
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Rope>, Status> {
        Ok(Some(Rope::from(from.copy_to_bytes(from.remaining()))))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
