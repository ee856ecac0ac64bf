//! The ioctls, through the C library: `libc::ioctl` is what an interposer can reach.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use iommufd_bindings::iommufd as u;
use vfio_bindings::bindings::vfio as v;

use crate::HwInfo;
use crate::host::{Device, Host, InvalidateError};

/// `_IO(';', number)`: what iommufd and VFIO commands are.
const fn request(number: u32) -> libc::c_ulong {
    (u::IOMMUFD_TYPE as libc::c_ulong) << 8 | number as libc::c_ulong
}

/// VFIO's numbers begin at `VFIO_BASE`, 100.
const BIND: libc::c_ulong = request(100 + 18);
const ATTACH: libc::c_ulong = request(100 + 19);
const DETACH: libc::c_ulong = request(100 + 20);

/// One ioctl, again if a signal came first.
///
/// # Safety
///
/// `T` is the structure of the command, its size field says so, and pointers in it are to memory that the command
/// may use as it does.
unsafe fn call<T>(fd: RawFd, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    loop {
        // SAFETY: the caller's promise.
        if unsafe { libc::ioctl(fd, request as _, std::ptr::from_mut(argument)) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A real `/dev/iommu`: a [`File`], or the `Arc<IommuFd>` of the crate `iommufd-ioctls` that the rest of the VMM uses.
#[derive(Debug, Clone)]
pub struct Iommufd<T>(T);

impl<T: AsRawFd> Iommufd<T> {
    /// Uses an open `/dev/iommu`.
    pub fn new(file: T) -> Self {
        Self(file)
    }

    /// The file.
    pub fn file(&self) -> &T {
        &self.0
    }

    /// # Safety
    ///
    /// See [`call`].
    unsafe fn call<A>(&self, number: u32, argument: &mut A) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { call(self.0.as_raw_fd(), request(number), argument) }
    }

    fn hwpt(&self, mut command: u::iommu_hwpt_alloc) -> io::Result<u32> {
        command.size = size_of::<u::iommu_hwpt_alloc>() as u32;
        // SAFETY: our structure; the data that it may point to is the caller's for as long.
        unsafe { self.call(u::IOMMUFD_CMD_HWPT_ALLOC, &mut command)? };
        Ok(command.out_hwpt_id)
    }
}

impl<T: AsRawFd + Send + Sync> Host for Iommufd<T> {
    fn hw_info(&self, device: u32) -> io::Result<HwInfo> {
        let mut info = u::iommu_hw_info_arm_smmuv3::default();
        let mut command = u::iommu_hw_info {
            size: size_of::<u::iommu_hw_info>() as u32,
            dev_id: device,
            data_len: size_of::<u::iommu_hw_info_arm_smmuv3>() as u32,
            data_uptr: std::ptr::from_mut(&mut info) as u64,
            ..Default::default()
        };
        // SAFETY: our structure, and it writes at most data_len bytes to `info`, which is plain.
        unsafe { self.call(u::IOMMUFD_CMD_GET_HW_INFO, &mut command)? };
        // SAFETY: both members of the union are the same 32 bits.
        let found = unsafe { command.__bindgen_anon_1.out_data_type };
        if found != u::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the device is behind an IOMMU of type {found}, not an SMMUv3"),
            ));
        }
        Ok(HwInfo { flags: info.flags, idr: info.idr, iidr: info.iidr, aidr: info.aidr })
    }

    fn nest_parent(&self, device: u32, ioas: u32) -> io::Result<u32> {
        self.hwpt(u::iommu_hwpt_alloc {
            flags: u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
            dev_id: device,
            pt_id: ioas,
            ..Default::default()
        })
    }

    fn viommu(&self, device: u32, parent: u32) -> io::Result<u32> {
        let mut command = u::iommu_viommu_alloc {
            size: size_of::<u::iommu_viommu_alloc>() as u32,
            type_: u::iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
            dev_id: device,
            hwpt_id: parent,
            ..Default::default()
        };
        // SAFETY: our structure, without a pointer.
        unsafe { self.call(u::IOMMUFD_CMD_VIOMMU_ALLOC, &mut command)? };
        Ok(command.out_viommu_id)
    }

    fn nested(
        &self,
        device: u32,
        viommu: u32,
        ste: [u64; 2],
        fault_queue: Option<u32>,
    ) -> io::Result<u32> {
        let data = u::iommu_hwpt_arm_smmuv3 { ste: ste.map(u64::to_le) };
        let fault = u::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
        self.hwpt(u::iommu_hwpt_alloc {
            flags: if fault_queue.is_some() { fault } else { 0 },
            dev_id: device,
            pt_id: viommu,
            data_type: u::iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
            data_len: size_of::<u::iommu_hwpt_arm_smmuv3>() as u32,
            data_uptr: std::ptr::from_ref(&data) as u64,
            fault_id: fault_queue.unwrap_or(0),
            ..Default::default()
        })
    }

    fn vdevice(&self, viommu: u32, device: u32, stream_id: u32) -> io::Result<u32> {
        let mut command = u::iommu_vdevice_alloc {
            size: size_of::<u::iommu_vdevice_alloc>() as u32,
            viommu_id: viommu,
            dev_id: device,
            virt_id: stream_id.into(),
            ..Default::default()
        };
        // SAFETY: our structure, without a pointer.
        unsafe { self.call(u::IOMMUFD_CMD_VDEVICE_ALLOC, &mut command)? };
        Ok(command.out_vdevice_id)
    }

    fn event_queue(&self, viommu: u32, depth: u32) -> io::Result<(u32, File)> {
        let mut command = u::iommu_veventq_alloc {
            size: size_of::<u::iommu_veventq_alloc>() as u32,
            viommu_id: viommu,
            type_: u::iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
            veventq_depth: depth,
            ..Default::default()
        };
        // SAFETY: our structure, without a pointer.
        unsafe { self.call(u::IOMMUFD_CMD_VEVENTQ_ALLOC, &mut command)? };
        // SAFETY: the descriptor is new, and ours.
        let file = unsafe { File::from_raw_fd(command.out_veventq_fd as RawFd) };
        Ok((command.out_veventq_id, file))
    }

    fn fault_queue(&self) -> io::Result<(u32, File)> {
        let mut command = u::iommu_fault_alloc {
            size: size_of::<u::iommu_fault_alloc>() as u32,
            ..Default::default()
        };
        // SAFETY: our structure, without a pointer.
        unsafe { self.call(u::IOMMUFD_CMD_FAULT_QUEUE_ALLOC, &mut command)? };
        // SAFETY: the descriptor is new, and ours.
        let file = unsafe { File::from_raw_fd(command.out_fault_fd as RawFd) };
        Ok((command.out_fault_id, file))
    }

    fn invalidate(&self, viommu: u32, commands: &[[u64; 2]]) -> Result<(), InvalidateError> {
        let entries: Vec<[u64; 2]> = commands.iter().map(|words| words.map(u64::to_le)).collect();
        let mut command = u::iommu_hwpt_invalidate {
            size: size_of::<u::iommu_hwpt_invalidate>() as u32,
            hwpt_id: viommu,
            data_uptr: entries.as_ptr() as u64,
            data_type: u::iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
            entry_len: size_of::<u::iommu_viommu_arm_smmuv3_invalidate>() as u32,
            entry_num: entries.len() as u32,
            ..Default::default()
        };
        // SAFETY: our structure, and it reads entry_num entries of entry_len bytes, which `entries` has.
        let result = unsafe { self.call(u::IOMMUFD_CMD_HWPT_INVALIDATE, &mut command) };
        let done = command.entry_num as usize;
        match result {
            Ok(()) if done == commands.len() => Ok(()),
            Ok(()) => Err(InvalidateError { done, error: io::Error::from_raw_os_error(libc::EIO) }),
            Err(error) => Err(InvalidateError { done, error }),
        }
    }

    fn destroy(&self, object: u32) -> io::Result<()> {
        let mut command =
            u::iommu_destroy { size: size_of::<u::iommu_destroy>() as u32, id: object };
        // SAFETY: our structure, without a pointer.
        unsafe { self.call(u::IOMMUFD_CMD_DESTROY, &mut command) }
    }
}

/// A VFIO device file (`/dev/vfio/devices/vfioN`), bound to an iommufd.
#[derive(Debug)]
pub struct VfioDevice<T> {
    file: T,
    id: u32,
}

impl<T: AsRawFd> VfioDevice<T> {
    /// Binds a device file to an iommufd.
    pub fn bind(file: T, iommufd: &impl AsRawFd) -> io::Result<Self> {
        let mut command = v::vfio_device_bind_iommufd {
            // Without the token, which older kernels do not know.
            argsz: std::mem::offset_of!(v::vfio_device_bind_iommufd, token_uuid_ptr) as u32,
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        // SAFETY: our structure, without a pointer that is in use.
        unsafe { call(file.as_raw_fd(), BIND, &mut command)? };
        Ok(Self { file, id: command.out_devid })
    }

    /// A device file that was bound already, and the id that it got.
    pub fn bound(file: T, id: u32) -> Self {
        Self { file, id }
    }

    /// The file.
    pub fn file(&self) -> &T {
        &self.file
    }
}

impl<T: AsRawFd + Send + Sync> Device for VfioDevice<T> {
    fn id(&self) -> u32 {
        self.id
    }

    fn attach(&self, page_table: u32) -> io::Result<()> {
        let mut command = v::vfio_device_attach_iommufd_pt {
            argsz: std::mem::offset_of!(v::vfio_device_attach_iommufd_pt, pasid) as u32,
            pt_id: page_table,
            ..Default::default()
        };
        // SAFETY: our structure, without a pointer.
        unsafe { call(self.file.as_raw_fd(), ATTACH, &mut command) }
    }

    fn detach(&self) -> io::Result<()> {
        let mut command = v::vfio_device_detach_iommufd_pt {
            argsz: std::mem::offset_of!(v::vfio_device_detach_iommufd_pt, pasid) as u32,
            ..Default::default()
        };
        // SAFETY: our structure, without a pointer.
        unsafe { call(self.file.as_raw_fd(), DETACH, &mut command) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `linux/vfio.h`, `linux/iommufd.h`.
    #[test]
    fn requests_are_those_of_the_headers() {
        assert_eq!((BIND, ATTACH, DETACH), (0x3b76, 0x3b77, 0x3b78));
        assert_eq!(request(u::IOMMUFD_CMD_HWPT_INVALIDATE), 0x3b8d);
    }

    #[test]
    fn an_error_is_the_systems() {
        let host = Iommufd::new(File::open("/dev/null").unwrap());
        assert_eq!(host.destroy(1).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        let refused = host.invalidate(1, &[[0x30, 0]]).unwrap_err();
        assert_eq!(refused.error.raw_os_error(), Some(libc::ENOTTY));
    }
}
