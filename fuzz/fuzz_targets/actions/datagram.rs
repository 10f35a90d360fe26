//! Sockets that keep messages: one is received whole, or stays where it is.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use ropewalk::Rope;

use crate::world::{MOST_BYTES, World};
use crate::{Size, Which};

/// How a message is received.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Way {
    Read,
    UpTo(Size),
    Message,
}

pub struct Pair {
    writer: UnixDatagram,
    reader: UnixDatagram,
}

impl Pair {
    /// The same for all runs.
    pub fn get() -> &'static Pair {
        static PAIR: OnceLock<Pair> = OnceLock::new();
        PAIR.get_or_init(Pair::new)
    }

    fn new() -> Pair {
        let (writer, reader) = UnixDatagram::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        reader.set_nonblocking(true).unwrap();
        Pair { writer, reader }
    }

    /// The message that was sent.
    fn take(&self) -> Vec<u8> {
        let mut message = vec![0; 2 * MOST_BYTES];
        let len = self.reader.recv(&mut message).unwrap();
        message.truncate(len);
        message
    }

    fn is_empty(&self) -> bool {
        self.reader.recv(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

impl World {
    pub fn receive_datagram(&mut self, rope: Which, size: Size, way: Way) {
        let message = self.make(size.bytes().max(1));
        let pair = Pair::get();
        pair.writer.send(&message).unwrap();
        let model = self.model(rope);
        let left = Rope::limit(&model.rope).saturating_sub(model.flat.len());
        let result = match way {
            Way::Read => model.rope.readv_from(&pair.reader),
            Way::UpTo(max) => model.rope.readv_up_to(&pair.reader, max.bytes()),
            Way::Message => model.rope.recvmsg_from(&pair.reader, 0).map(|received| received.bytes),
        };
        let most = if let Way::UpTo(max) = way { max.bytes() } else { usize::MAX };
        match result {
            Ok(0) => assert!(most == 0 && pair.take() == message),
            Ok(count) => {
                assert!(count == message.len() && count <= left && count <= most);
                model.flat.extend(message);
            }
            Err(error) => {
                match error.kind() {
                    ErrorKind::InvalidInput => assert!(message.len() > most),
                    ErrorKind::QuotaExceeded => assert!(message.len() > left),
                    // Its place has to be contiguous.
                    ErrorKind::OutOfMemory => assert!(model.rope.pool().is_some()),
                    _ => panic!("{error}"),
                }
                assert_eq!(pair.take(), message);
            }
        }
        assert!(pair.is_empty());
    }

    pub fn send_datagram(&mut self, rope: Which) {
        let pair = Pair::get();
        let model = self.model(rope);
        match model.rope.writev_to(&pair.writer) {
            Ok(0) => assert!(model.flat.is_empty()),
            Ok(count) => {
                assert_eq!(count, model.flat.len());
                assert_eq!(pair.take(), std::mem::take(&mut model.flat));
            }
            Err(error) => {
                let too_large = error.raw_os_error() == Some(libc::EMSGSIZE);
                assert!(too_large || error.kind() == ErrorKind::InvalidInput, "{error}");
            }
        }
        assert!(pair.is_empty());
    }
}
