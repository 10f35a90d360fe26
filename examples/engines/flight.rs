//! Arrow Flight.

use std::io::{self, Write};

use arrow_flight::FlightData;
use bytes::Bytes;
use ropewalk::{Pool, Rope, View};

/// Makes a message whose body is the view: no copy. To send it, tonic copies it once into its own buffer.
pub fn to_message(header: Bytes, body: View) -> FlightData {
    FlightData { data_header: header, data_body: body.into(), ..FlightData::default() }
}

/// Aligns the body of a received message, which starts where tonic's buffer had it: copied once into the pool's pages.
/// `FlightRecordBatchStream` then decodes it without a copy; one that is not aligned it copies into fresh memory.
pub fn align(message: FlightData, pool: &Pool) -> io::Result<FlightData> {
    let mut rope = Rope::in_pool(pool);
    rope.reserve(message.data_body.len())?;
    rope.write_all(&message.data_body)?;
    Ok(FlightData { data_body: rope.finalize()?.into(), ..message })
}
