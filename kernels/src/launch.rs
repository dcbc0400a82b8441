//! How a kernel is launched on a GPU: the part of a PTX module that is data.

use serde::{Deserialize, Serialize};

/// One entry point of a kernel's PTX. Its parameters are the kernel's arguments, in order, as 64-bit addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub entry: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared_bytes: u32,
}
