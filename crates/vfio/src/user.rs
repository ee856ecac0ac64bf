//! Arguments in user memory: VFIO's structs begin with their size.

use host::Task;
use uapi::Plain;

use crate::Error;

/// Reads what is there of a struct that needs at least `min` bytes, and says how many it has.
pub(crate) fn read<T: Plain>(task: &dyn Task, arg: u64, min: usize) -> Result<(T, usize), Error> {
    let mut value = T::zeroed();
    task.mm().copy_from_user(arg, &mut value.as_bytes_mut()[..min])?;
    let argsz = value.as_bytes().first_chunk().map_or(0, |size| u32::from_ne_bytes(*size));
    if (argsz as usize) < min {
        return Err(Error::Invalid("argsz"));
    }
    let known = size_of::<T>().min(argsz as usize);
    task.mm().copy_from_user(arg, &mut value.as_bytes_mut()[..known])?;
    Ok((value, known))
}

/// Writes the first `len` bytes of a struct.
pub(crate) fn write(
    task: &dyn Task,
    arg: u64,
    value: &impl Plain,
    len: usize,
) -> Result<(), Error> {
    Ok(task.mm().copy_to_user(arg, &value.as_bytes()[..len])?)
}

/// Reads a C string of less than `max` bytes.
pub(crate) fn read_text(task: &dyn Task, arg: u64, max: usize) -> Result<String, Error> {
    let mut text = Vec::new();
    // Byte by byte: behind its end there may be nothing.
    for at in (arg..).take(max) {
        let mut byte = [0];
        task.mm().copy_from_user(at, &mut byte)?;
        if byte == [0] {
            return String::from_utf8(text).map_err(|_| Error::Invalid("not a name"));
        }
        text.extend(byte);
    }
    Err(Error::Invalid("the name does not end"))
}
