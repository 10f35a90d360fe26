//! Where `transfer recv` puts a payload: a file, written whole or not at all, or a device.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{self, Path, PathBuf};

use ropewalk::Rope;
use tempfile::{Builder, NamedTempFile};

use crate::advise;

pub(crate) struct Output {
    path: PathBuf,
    /// A device or a pipe is written to; a file is replaced when the new one is complete.
    device: Option<File>,
}

impl Output {
    /// Finds out, before anything is received, whether there is a way to write there.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Output> {
        Self::open(path).map_err(|error| {
            advise(format_args!("cannot write to {}", path.display()), error, "choose another --output")
        })
    }

    fn open(path: &Path) -> io::Result<Output> {
        let path = fs::canonicalize(path).or_else(|_absent| path::absolute(path))?;
        let is_file = fs::metadata(&path).map_or(true, |there| there.is_file());
        if is_file {
            tempfile::tempfile_in(directory(&path))?;
        }
        let device = if is_file { None } else { Some(File::options().write(true).open(&path)?) };
        Ok(Output { path, device })
    }

    pub(crate) fn write(&self, payload: Rope) -> anyhow::Result<()> {
        let len = payload.len();
        self.put(payload).map_err(|error| {
            let what = format!("cannot write {len} bytes to {}", self.path.display());
            advise(what, error, "make room there or choose another --output")
        })
    }

    fn put(&self, mut payload: Rope) -> io::Result<()> {
        match &self.device {
            Some(device) => payload.write_all_to(device),
            None => {
                let file = beside(&self.path)?;
                payload.write_all_to(&file)?;
                file.persist(&self.path)?;
                Ok(())
            }
        }
    }
}

/// A file that is to replace the one at `path`, and is gone if it does not.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let permissions = fs::metadata(path).map(|there| there.permissions());
    let permissions = permissions.unwrap_or_else(|_absent| Permissions::from_mode(0o666));
    Builder::new().permissions(permissions).tempfile_in(directory(path))
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
