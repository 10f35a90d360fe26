//! Arrow: record batches that came in frames are used where they landed.
#![allow(clippy::unwrap_used)] // a test may panic

use std::io::Write;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_data::ArrayData;
use arrow_ipc::MetadataVersion;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use engines::arrow::to_buffer;
use ropewalk::{Pool, Rope, RopeCodec};

const ALIGNMENT: usize = 64;
const MAX: usize = 64 << 20;

fn batch(rows: i64) -> RecordBatch {
    let numbers: ArrayRef = Arc::new((0..rows).map(|i| (i % 7 != 0).then_some(i)).collect::<Int64Array>());
    let halves: ArrayRef = Arc::new((0..rows).map(|i| Some(i as f64 / 2.0)).collect::<Float64Array>());
    let names: ArrayRef = Arc::new((0..rows).map(|i| Some(i.to_string())).collect::<StringArray>());
    RecordBatch::try_from_iter_with_nullable([
        ("numbers", numbers, true),
        ("halves", halves, true),
        ("names", names, true),
    ])
    .unwrap()
}

/// An IPC stream: the schema, and two batches.
fn stream_of(rows: i64) -> Vec<u8> {
    let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5).unwrap();
    let batch = batch(rows);
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
    writer.write(&batch).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn assert_inside(data: &ArrayData, place: &Range<usize>) {
    let nulls = data.nulls().map(|nulls| nulls.inner().inner());
    for buffer in data.buffers().iter().chain(nulls) {
        let start = buffer.as_ptr().addr();
        assert!(buffer.is_empty() || place.contains(&start) && start + buffer.len() <= place.end);
        assert_eq!(start % 8, 0, "not aligned for numbers of 8 bytes");
    }
    data.child_data().iter().for_each(|child| assert_inside(child, place));
}

#[test]
fn record_batches_are_decoded_where_they_landed() {
    let rows: Vec<i64> = (0..40).map(|i| [200, 5_000, 300, 100_000][i % 4]).collect();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let sent = rows.clone();
    let sender = thread::spawn(move || {
        for rows in sent {
            let stream = stream_of(rows);
            peer.write_all(&u32::try_from(stream.len()).unwrap().to_be_bytes()).unwrap();
            peer.write_all(&stream).unwrap();
        }
    });
    let codec = RopeCodec::new(MAX).alignment(ALIGNMENT);
    let mut received = Rope::in_pool(&Pool::new().unwrap());
    for rows in rows {
        let view = received.readv_frame(&socket, &codec).unwrap().unwrap().finalize().unwrap();
        assert_eq!((view.num_maps(), view.copied_bytes()), (0, 0));
        let place = view.as_ptr().addr()..view.as_ptr().addr() + view.len();
        let mut stream = to_buffer(view);
        let mut decoder = StreamDecoder::new().with_require_alignment(true);
        for _ in 0..2 {
            let decoded = decoder.decode(&mut stream).unwrap().unwrap();
            assert_eq!(decoded, batch(rows));
            decoded.columns().iter().for_each(|column| assert_inside(&column.to_data(), &place));
        }
        assert!(decoder.decode(&mut stream).unwrap().is_none());
    }
    sender.join().unwrap();
    assert!(received.readv_frame(&socket, &codec).unwrap().is_none());
}
