//! Arrow IPC, Parquet and Flight.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use engines::arrow::{read_ipc, read_parquet, to_buffer, write_ipc};
use parquet::arrow::ArrowWriter;
use ropewalk::{Pool, ReadRope, Rope, RopeCodec, View, WriteRope};
use support::received;
use tokio::net::UnixStream;

fn batches() -> Vec<RecordBatch> {
    (0..3)
        .map(|batch| {
            let rows = 100_000 + batch;
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
            let values: ArrayRef = Arc::new(Float64Array::from_iter_values((0..rows).map(|row| row as f64)));
            let names: ArrayRef =
                Arc::new(StringArray::from_iter_values((0..rows).map(|row| row.to_string())));
            RecordBatch::try_from_iter([("id", ids), ("value", values), ("name", names)]).unwrap()
        })
        .collect()
}

/// How many of the arrays' buffers lie in the view, and of how many.
fn buffers_in(view: &View, batches: &[RecordBatch]) -> (usize, usize) {
    let range = view.as_ptr_range();
    let all: Vec<_> = batches
        .iter()
        .flat_map(|batch| batch.columns())
        .flat_map(|column| column.to_data().buffers().to_vec())
        .filter(|buffer| !buffer.is_empty())
        .collect();
    (all.iter().filter(|buffer| range.contains(&buffer.as_ptr())).count(), all.len())
}

#[test]
fn a_stream_is_decoded_where_it_was_received() {
    let pool = Pool::new().unwrap();
    let sent = batches();
    let view = write_ipc(&sent, &pool).unwrap().finalize().unwrap();
    assert_eq!(view.copied_bytes(), 0);
    let got = read_ipc(view.clone()).unwrap();
    assert_eq!(got, sent);
    let (within, all) = buffers_in(&view, &got);
    assert!(within == all && all >= 9, "{within} of {all} buffers lie in the view");
}

#[test]
fn what_is_not_aligned_is_an_error() {
    let pool = Pool::new().unwrap();
    let mut rope = received(&pool, b"odd");
    for chunk in write_ipc(&batches(), &pool).unwrap().chunks() {
        rope.extend_from_slice(chunk);
    }
    let view = rope.finalize().unwrap();
    assert!(read_ipc(view.slice(3..)).is_err());
}

/// Frames of odd length on one connection: `RopeCodec::alignment` brings each body to where Arrow wants it.
#[tokio::test]
async fn frames_are_aligned_for_arrow() {
    let pool = Pool::new().unwrap();
    let codec = RopeCodec::new(64 << 20).alignment(64);
    let (here, there) = UnixStream::pair().unwrap();
    let sent = batches();
    let sender = {
        let (sent, pool) = (sent.clone(), Pool::new().unwrap());
        tokio::spawn(async move {
            for filler in [1, 333, 77_777] {
                here.write_all_rope(&mut codec.wrap(Rope::from(vec![7; filler])).unwrap()).await.unwrap();
                let mut frame = codec.wrap(write_ipc(&sent, &pool).unwrap()).unwrap();
                here.write_all_rope(&mut frame).await.unwrap();
            }
        })
    };
    let mut stream = Rope::in_pool(&pool);
    for filler in [1, 333, 77_777] {
        assert_eq!(there.read_frame(&mut stream, &codec).await.unwrap().unwrap().len(), filler);
        let frame = there.read_frame(&mut stream, &codec).await.unwrap().unwrap();
        let view = frame.finalize().unwrap();
        assert_eq!((view.copied_bytes(), view.as_ptr().addr() % 64), (0, 0));
        let got = read_ipc(view.clone()).unwrap();
        assert_eq!(got, sent);
        let (within, all) = buffers_in(&view, &got);
        assert_eq!(within, all);
    }
    sender.await.unwrap();
}

#[test]
fn a_parquet_file_is_read_from_a_view() {
    let pool = Pool::new().unwrap();
    let sent = batches();
    let mut writer = ArrowWriter::try_new(Rope::in_pool(&pool), sent[0].schema(), None).unwrap();
    for batch in &sent {
        writer.write(batch).unwrap();
    }
    let view = writer.into_inner().unwrap().finalize().unwrap();
    let got = read_parquet(view).unwrap();
    let rows: usize = got.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, sent.iter().map(RecordBatch::num_rows).sum::<usize>());
    assert_eq!(got[0], sent[0].slice(0, got[0].num_rows()));
    assert_eq!(pool.stats().bytes_copied, 0);
}

#[test]
fn an_empty_view_is_an_empty_buffer() {
    let buffer = to_buffer(Rope::new().finalize().unwrap());
    assert!(buffer.is_empty());
    assert!(read_ipc(Rope::new().finalize().unwrap()).unwrap().is_empty());
    assert!(write_ipc(&[], &Pool::new().unwrap()).unwrap().is_empty());
}
