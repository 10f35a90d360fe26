//! The private pool of a rope that becomes a file.
//!
//! The file of a pool that spills holds parts of many ropes, and none that are in memory. So a rope that becomes a file
//! has a pool all of whose pages go to a file of its own, the first page to its start. That file gets a name
//! (`view/persist.rs`), after which the pool leaves it alone.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::core::{Core, Pool};
use super::options::PoolOptions;
use crate::sys::shown;

/// Permissions of a file that [`File::create`](std::fs::File::create) makes, before the umask.
const MODE: u32 = 0o666;

impl Pool {
    /// Makes a private pool of up to `bytes`, with a file without a name in `directory`.
    ///
    /// # Errors
    ///
    /// As for [`PoolOptions::create`] of a pool that spills.
    pub(crate) fn for_file(directory: &Path, bytes: u64) -> io::Result<Pool> {
        let options = PoolOptions { capacity: 0, decay: Duration::MAX, ..Pool::options() };
        Pool::over(Core::on_disk(&options.spill(directory, bytes), MODE)?)
    }

    /// Returns whether all pages go to a file that may get a name.
    pub(crate) fn is_for_file(&self) -> bool {
        self.core().spill().is_some()
    }

    /// linkat(2): lets the file of a private pool become the one at `path`, if these bytes are all of it; returns whether
    /// they are, and it did. Waits until the disk has them.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`, and what fsync(2) reports.
    pub(crate) fn name_file(&self, bytes: &[u8], path: &Path) -> io::Result<bool> {
        let Some(spill) = self.core().spill().filter(|_| self.check_process().is_ok()) else {
            return Ok(false);
        };
        spill.settle();

        match shown::first_part(bytes) {
            (len, Some(at)) if len == bytes.len() && at.offset == 0 && spill.name(len, path)? => {
                // No page is left that a rope could fill without the file.
                self.core().trim()?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
