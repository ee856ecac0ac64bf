//! `IOMMU_IOAS_*`.

use std::sync::Arc;

use host::{Capability, OpenFile, Task};
use iommu::Prot;
use uapi::Plain;
use uapi::extra::iommu_ioas_noiommu_get_pa;
use uapi::iommufd as u;

use super::codec::{Command, read_user};
use crate::context::{Object, State};
use crate::ioas::pages::{DmaBufSource, FileSource, Mapper, Pages, PagesId, Source};
use crate::ioas::{MapRequest, Piece};
use crate::{Context, DmaBuf, Error, Id};

const FIXED_IOVA: u32 = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
const WRITEABLE: u32 = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
const READABLE: u32 = u::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;

pub(super) fn alloc(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_ioas_alloc = command.get();
    if cmd.flags != 0 {
        return Err(Error::Unsupported("IOAS_ALLOC flags"));
    }
    context.publish(
        |state| state.reserve(Object::Ioas(Box::default())),
        |id| {
            cmd.out_ioas_id = id;
            command.respond(&cmd)
        },
    )
}

pub(super) fn iova_ranges(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_ioas_iova_ranges = command.get();
    if cmd.__reserved != 0 {
        return Err(Error::Unsupported("reserved field"));
    }
    let ranges = {
        let state = context.lock();
        let ioas = state.ioas(cmd.ioas_id)?;
        cmd.out_iova_alignment = ioas.alignment();
        ioas.iova_ranges()
    };
    let room = cmd.num_iovas as usize;
    let known = ranges.iter().take(room).map(|&(start, last)| u::iommu_iova_range { start, last });
    let bytes: Vec<u8> = known.flat_map(|range| range.as_bytes().to_vec()).collect();
    command.mm().copy_to_user(cmd.allowed_iovas, &bytes)?;
    cmd.num_iovas = ranges.len() as u32;
    command.respond(&cmd)?;
    if ranges.len() > room { Err(Error::MessageSize) } else { Ok(()) }
}

pub(super) fn allow_iovas(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_ioas_allow_iovas = command.get();
    if cmd.__reserved != 0 {
        return Err(Error::Unsupported("reserved field"));
    }
    context.lock().ioas(cmd.ioas_id)?;
    // Grows with what is really there, not with what the count claims.
    let mut ranges = Vec::new();
    for index in 0..u64::from(cmd.num_iovas) {
        let at = cmd.allowed_iovas.wrapping_add(index * size_of::<u::iommu_iova_range>() as u64);
        let range: u::iommu_iova_range = read_user(command.mm(), at)?;
        if range.start >= range.last {
            return Err(Error::Invalid("an allowed range must start before it ends"));
        }
        ranges.push((range.start, range.last));
    }
    context.lock().ioas_mut(cmd.ioas_id)?.set_allowed(&ranges)
}

/// The protection that flags ask for.
fn protection(flags: u32) -> Result<Prot, Error> {
    if flags & !(FIXED_IOVA | WRITEABLE | READABLE) != 0 {
        return Err(Error::Unsupported("map flags"));
    }
    let mut prot = Prot::CACHE;
    prot.set(Prot::READ, flags & READABLE != 0);
    prot.set(Prot::WRITE, flags & WRITEABLE != 0);
    Ok(prot)
}

fn needs_permission(prot: Prot) -> Result<(), Error> {
    if prot.intersects(Prot::READ | Prot::WRITE) {
        Ok(())
    } else {
        Err(Error::Invalid("a mapping must be readable or writeable"))
    }
}

/// No value that user space gives may be as large as the address space.
pub(crate) fn bounded(values: &[u64]) -> Result<(), Error> {
    if values.contains(&u64::MAX) { Err(Error::Overflow("address or length")) } else { Ok(()) }
}

/// A new mapping.
pub(crate) struct NewMapping {
    pub(crate) ioas: Id,
    pub(crate) memory: Memory,
    /// In bytes.
    pub(crate) length: u64,
    pub(crate) prot: Prot,
    /// Where, if user space chose.
    pub(crate) iova: Option<u64>,
}

/// Memory to map: at an address of the caller, or in a file.
pub(crate) enum Memory {
    User(u64),
    File { file: OpenFile, start: u64 },
}

impl Context {
    /// Maps memory and passes the IOVA to `respond`; if that fails nothing
    /// stays mapped.
    pub(crate) fn map_memory(
        &self,
        task: &dyn Task,
        new: NewMapping,
        respond: impl FnOnce(u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let NewMapping { ioas: ioas_id, memory, length, prot, iova } = new;
        let iova = {
            let unlimited = self.capable(task, Capability::IpcLock);
            let memory = self.registers_behind(task, memory, length);
            let mut state = self.lock();
            state.ioas(ioas_id)?;
            let mapper = state.mapper(task, unlimited);
            let (pages, prot) = self.pages_of(mapper, memory, length, prot)?;
            let (ioas, table) = state.ioas_and_pages(ioas_id)?;
            let id = table.insert(pages)?;
            let pieces = [Piece { pages: id, byte: 0, len: length }];
            let mapped = ioas.map(table, &MapRequest { pieces: &pieces, prot, iova });
            (mapped.inspect_err(|_| table.discard(id))?, id)
        };
        respond(iova.0).inspect_err(|_| self.undo_map(ioas_id, iova.0, length, iova.1))
    }

    /// The registers that `memory` maps, for a type1 container: elsewhere they are no memory to be found by its address.
    fn registers_behind(&self, task: &dyn Task, memory: Memory, length: u64) -> Memory {
        let Memory::User(va) = memory else { return memory };
        let (start, page) = (va % host::PAGE_SIZE, va / host::PAGE_SIZE * host::PAGE_SIZE);
        let found = self.maps_registers.then(|| task.mapped_file(page)).flatten();
        let run = found.and_then(|mapped| {
            let len = length.checked_add(start)?.checked_next_multiple_of(host::PAGE_SIZE)?;
            mapped.file.registers(mapped.offset, len).filter(|_| len <= mapped.len)
        });
        match run {
            None => memory,
            run => Memory::File { file: OpenFile::Emulated(DmaBuf::new(run, Box::new(()))), start },
        }
    }

    /// Unmaps what was just mapped, unless somebody else has done so since.
    fn undo_map(&self, ioas_id: Id, iova: u64, length: u64, mapped: PagesId) {
        let mut state = self.lock();
        let Ok((ioas, table)) = state.ioas_and_pages(ioas_id) else { return };
        let pieces = ioas.pieces(iova, length);
        if pieces.is_ok_and(|pieces| pieces.first().is_some_and(|piece| piece.pages == mapped)) {
            // An access that has pinned it by now keeps it mapped.
            let _ = ioas.unmap(table, iova, iova + (length - 1), &mut 0);
        }
    }

    fn pages_of(
        &self,
        mapper: Arc<Mapper>,
        memory: Memory,
        length: u64,
        prot: Prot,
    ) -> Result<(Pages, Prot), Error> {
        let start = match &memory {
            Memory::User(start) | Memory::File { start, .. } => *start,
        };
        let end = start.checked_add(length).ok_or(Error::Overflow("address + length"))?;
        if end > u64::MAX - host::PAGE_SIZE {
            return Err(Error::Overflow("address + length"));
        }
        if length == 0 {
            return Err(Error::Invalid("the length is 0"));
        }
        let writable = prot.contains(Prot::WRITE);
        let (source, prot) = match memory {
            Memory::User(start) => (Source::User { start }, prot),
            Memory::File { file: OpenFile::Kernel(file), start } => {
                (Source::File { file: Arc::new(FileSource { file, start }) }, prot)
            }
            Memory::File { file: OpenFile::Emulated(file), start } => {
                let any: Arc<dyn std::any::Any + Send + Sync> = file;
                let buf = any
                    .downcast::<DmaBuf>()
                    .map_err(|_| Error::Invalid("the file holds no memory to pin"))?;
                let run = buf.phys().ok_or(Error::Unsupported("a dma-buf in several pieces"))?;
                if run.len < end {
                    return Err(Error::Invalid("the range ends beyond the dma-buf"));
                }
                // In this order a revocation either sees us or is seen.
                buf.import(&self.arc()?);
                if buf.is_revoked() {
                    return Err(Error::NoDevice("the dma-buf is revoked"));
                }
                let prot = (prot - Prot::CACHE) | Prot::MMIO;
                (Source::DmaBuf { buf: Arc::new(DmaBufSource { buf, pa: run.pa, start }) }, prot)
            }
        };
        Ok((Pages::new(mapper, source, length, writable), prot))
    }
}

pub(super) fn map(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_ioas_map = command.get();
    let prot = protection(cmd.flags)?;
    if cmd.__reserved != 0 {
        return Err(Error::Unsupported("reserved field"));
    }
    bounded(&[cmd.iova, cmd.length])?;
    needs_permission(prot)?;
    let fixed = (cmd.flags & FIXED_IOVA != 0).then_some(cmd.iova);
    let memory = Memory::User(cmd.user_va);
    let (ioas, length) = (cmd.ioas_id, cmd.length);
    let new = NewMapping { ioas, memory, length, prot, iova: fixed };
    context.map_memory(command.task(), new, |iova| {
        cmd.iova = iova;
        command.respond(&cmd)
    })
}

pub(super) fn map_file(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_ioas_map_file = command.get();
    let prot = protection(cmd.flags)?;
    bounded(&[cmd.iova, cmd.length])?;
    needs_permission(prot)?;
    context.lock().ioas(cmd.ioas_id)?;
    if cmd.length == 0 {
        return Err(Error::Invalid("the length is 0"));
    }
    cmd.start.checked_add(cmd.length - 1).ok_or(Error::Overflow("start + length"))?;
    let file = command.task().file(cmd.fd).map_err(Error::File)?;
    let fixed = (cmd.flags & FIXED_IOVA != 0).then_some(cmd.iova);
    let memory = Memory::File { file, start: cmd.start };
    let (ioas, length) = (cmd.ioas_id, cmd.length);
    let new = NewMapping { ioas, memory, length, prot, iova: fixed };
    context.map_memory(command.task(), new, |iova| {
        cmd.iova = iova;
        command.respond(&cmd)
    })
}

pub(super) fn copy(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_ioas_copy = command.get();
    let prot = protection(cmd.flags)?;
    bounded(&[cmd.length, cmd.src_iova, cmd.dst_iova])?;
    needs_permission(prot)?;
    let iova = {
        let mut state = context.lock();
        let pieces = state.ioas(cmd.src_ioas_id)?.pieces(cmd.src_iova, cmd.length)?;
        let (ioas, table) = state.ioas_and_pages(cmd.dst_ioas_id)?;
        let mmio = pieces.iter().any(|piece| table.get(piece.pages).dmabuf().is_some());
        let prot = if mmio { (prot - Prot::CACHE) | Prot::MMIO } else { prot };
        let iova = (cmd.flags & FIXED_IOVA != 0).then_some(cmd.dst_iova);
        let mapped = ioas.map(table, &MapRequest { pieces: &pieces, prot, iova })?;
        (mapped, pieces.first().map(|piece| piece.pages))
    };
    cmd.dst_iova = iova.0;
    command.respond(&cmd).inspect_err(|_| {
        if let Some(pages) = iova.1 {
            context.undo_map(cmd.dst_ioas_id, iova.0, cmd.length, pages);
        }
    })
}

pub(super) fn unmap(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: u::iommu_ioas_unmap = command.get();
    let all = cmd.iova == 0 && cmd.length == u64::MAX;
    let last = if all {
        Ok(u64::MAX)
    } else {
        bounded(&[cmd.iova, cmd.length])
            .and_then(|()| crate::ioas::range_last(cmd.iova, cmd.length))
    };
    let last = match last {
        Ok(last) => last,
        Err(error) => {
            // An IOAS that does not exist is noticed first.
            context.lock().ioas(cmd.ioas_id)?;
            return Err(error);
        }
    };
    let (bytes, result) = context.unmap_range(cmd.ioas_id, cmd.iova, last);
    result?;
    if bytes == 0 && !all {
        return Err(Error::NotMapped(cmd.iova));
    }
    cmd.length = bytes;
    command.respond(&cmd)
}

pub(super) fn noiommu_get_pa(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let mut cmd: iommu_ioas_noiommu_get_pa = command.get();
    if !context.capable(command.task(), Capability::SysRawio) {
        return Err(Error::Permission("physical addresses need CAP_SYS_RAWIO"));
    }
    if cmd.flags != 0 || cmd.__reserved != 0 {
        return Err(Error::Unsupported("NOIOMMU_GET_PA flags or reserved field"));
    }
    if cmd.length == 0 {
        return Err(Error::Invalid("the length is 0"));
    }
    bounded(&[cmd.iova])?;
    (cmd.out_phys, cmd.length) = {
        let state = context.lock();
        let ioas = state.ioas(cmd.ioas_id)?;
        ioas.noiommu_phys(&state.pages, cmd.iova, cmd.length)?
    };
    command.respond(&cmd)
}

pub(super) fn change_process(context: &Context, command: &Command<'_>) -> Result<(), Error> {
    let cmd: u::iommu_ioas_change_process = command.get();
    if cmd.__reserved != 0 {
        return Err(Error::Unsupported("reserved field"));
    }
    context.lock().change_process(command.task())
}

impl State {
    /// Charges every mapping to `task` from now on; all of them, or none.
    fn change_process(&mut self, task: &dyn Task) -> Result<(), Error> {
        let Self { objects, pages, .. } = self;
        let ioases = objects.iter().filter_map(|(_, object)| match object {
            Object::Ioas(ioas) => Some(ioas),
            _ => None,
        });
        for ioas in ioases {
            if !ioas.all_areas(pages, Pages::is_file) {
                return Err(Error::Invalid("only mappings of files can change process"));
            }
        }
        let mapper_like = |old: &Mapper| Mapper {
            mm: task.mm().clone(),
            user: task.user(),
            account: old.account,
            memlock_limit: task.memlock_limit(),
        };
        let mut charged: Vec<(PagesId, Arc<Mapper>)> = Vec::new();
        for (id, mapping) in pages.iter() {
            let mapper = mapper_like(mapping.mapper());
            if mapper.same(mapping.mapper()) {
                continue;
            }
            if let Err(error) = mapping.charge_to(&mapper) {
                for (id, mapper) in charged {
                    pages.get(id).uncharge_from(&mapper);
                }
                return Err(error);
            }
            charged.push((id, Arc::new(mapper)));
        }
        for (id, mapper) in charged {
            pages.get_mut(id).set_mapper(mapper);
        }
        Ok(())
    }
}
