//! Kernel parameters as files below `/proc/sys`. Those of the network belong to the namespace of the thread.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::KernelError;

/// Value of a parameter, without the line's end; `None` if there is no such parameter.
pub(crate) fn read(path: &str) -> Result<Option<String>, KernelError> {
    let result = file(path).and_then(std::fs::read_to_string);
    match result {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KernelError::Io {
            action: format!("read sysctl {path}"),
            source,
        }),
    }
}

/// Makes a parameter have a value. What is right already is not written: some parameters take the lock of the whole
/// network configuration to be written (`forwarding`, `disable_ipv6`), none to be read.
pub(crate) fn set(path: &str, value: &str) -> Result<(), KernelError> {
    if read(path)?.as_deref() == Some(value) {
        Ok(())
    } else {
        write(path, value)
    }
}

/// Writes a parameter.
pub(crate) fn write(path: &str, value: &str) -> Result<(), KernelError> {
    file(path)
        .and_then(|file| std::fs::write(file, value))
        .map_err(|source| KernelError::Io {
            action: format!("write {value} to sysctl {path}"),
            source,
        })
}

/// Interface names come from outside: a path must not leave `/proc/sys`.
fn file(path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    if relative
        .components()
        .all(|component| matches!(component, Component::Normal(_)))
    {
        Ok(Path::new("/proc/sys").join(relative))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a path below /proc/sys",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_does_not_exist_is_none_and_a_path_that_leaves_is_an_error() {
        assert!(
            read("kernel/ostype")
                .unwrap()
                .is_some_and(|value| value == "Linux")
        );
        assert!(read("net/ipv4/conf/no-such-link/forwarding").unwrap().is_none());
        assert!(read("net/../../etc/passwd").is_err());
        assert!(write("/etc/passwd", "1").is_err());
    }
}
