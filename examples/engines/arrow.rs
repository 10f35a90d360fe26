//! Arrow and Parquet.

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::ArrowError;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use ropewalk::{Pool, Rope, View};

/// Converts without a copy, whichever version of Arrow it is.
pub fn to_buffer(view: View) -> Buffer {
    Buffer::from(Bytes::from(view))
}

/// Decodes an IPC stream. The arrays' buffers are parts of the view: no copy, or an error if they are not aligned.
pub fn read_ipc(view: View) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut decoder = StreamDecoder::new().with_require_alignment(true);
    let (mut buffer, mut batches) = (to_buffer(view), Vec::new());
    while !buffer.is_empty() {
        batches.extend(decoder.decode(&mut buffer)?);
    }
    decoder.finish()?;
    Ok(batches)
}

/// Encodes an IPC stream into a pool's pages. Arrow's writer copies each buffer once.
pub fn write_ipc(batches: &[RecordBatch], pool: &Pool) -> Result<Rope, ArrowError> {
    let Some(first) = batches.first() else { return Ok(Rope::in_pool(pool)) };
    let mut writer = StreamWriter::try_new(Rope::in_pool(pool), first.schema_ref())?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.into_inner()
}

/// Reads a Parquet file. `Bytes` is a `ChunkReader` whose chunks are parts of the view; decoding copies, as it must.
pub fn read_parquet(view: View) -> Result<Vec<RecordBatch>, ParquetError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(view))?.build()?;
    Ok(reader.collect::<Result<_, _>>()?)
}
