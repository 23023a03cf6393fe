# Run by mmdebstrap in a tree that has the kernel's source and headers: makes the kernel's own driver for tests of
# power supplies, of which Debian's kernels are built without (CONFIG_TEST_POWER), and leaves it in the file $MODULE.
set -eu
cd "$1"
mkdir root/module
tar -xJf usr/src/linux-source-*.tar.xz -C root/module --strip-components=4 --wildcards --occurrence=1 '*/drivers/power/supply/test_power.c'
echo 'obj-m := test_power.o' >root/module/Makefile
chroot . make -C "/usr/src/linux-headers-$KERNEL" M=/root/module modules
chroot . strip --strip-debug /root/module/test_power.ko
cp root/module/test_power.ko "$MODULE"
