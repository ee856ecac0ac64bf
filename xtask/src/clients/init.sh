#!/bin/busybox sh
# What a guest does. Lines that begin with @@ are for whoever started it.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
# In whatever order they need each other.
for round in 1 2 3 4 5 6; do
    for module in /modules/*; do insmod "$module" 2>/dev/null; done
done
# Disks appear when their drivers have looked at them.
for second in 1 2 3 4 5 6 7 8 9 10; do
    [ -b /dev/vda ] && [ -b /dev/nvme0n1 ] && break
    sleep 1
done
for driver in ioatdma nvme virtio-pci; do
    for device in /sys/bus/pci/drivers/$driver/0000:*; do
        [ -e "$device" ] && echo "@@ bound $driver"
    done
done
for disk in vda nvme0n1; do
    [ -b /dev/$disk ] || continue
    echo "@@ read $disk $(sha256sum </dev/$disk | cut -d' ' -f1)"
    yes "written by the guest" | head -c 1048576 | dd of=/dev/$disk bs=65536 seek=32 conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    echo "@@ wrote $disk $(sha256sum </dev/$disk | cut -d' ' -f1)"
done
for name in ioat nvme virtio; do
    kinds=$(grep -E "$name|vfio" /proc/interrupts | grep -oE "MSI-?X?|IO-APIC" | sort -u | tr '\n' ' ')
    echo "@@ interrupts $name $kinds"
done
dmesg | grep -E "I/O error|I/O [0-9]+.*timeout|controller is down|ioatdma.*(timed out|Self-test|failed)" | sed "s/^/@@ trouble /"
echo "@@ done"
poweroff -f
