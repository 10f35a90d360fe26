//! The workloads under the allocator of the C library.

fn main() -> anyhow::Result<()> {
    ropewalk_workloads::main()
}
