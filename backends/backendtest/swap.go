package backendtest

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

func swapLaws() []law {
	return []law{
		{says: "memory_swap_max lets a service have that much swap, and no more", only: caged, alone: true, check: lawSwapMax},
		{says: "memory_zswap_max keeps compressed swap below it, and the rest goes to the disk", only: caged, alone: true, check: lawZswapMax},
	}
}

// ScratchDisk is the disk of the host that tests may write on, "" for none.
func ScratchDisk() string { return os.Getenv("GLADSHEIM_TEST_DISK") }

// swapping has the host swap on its scratch disk, until the law is done.
func (b *bench) swapping() {
	b.Helper()
	disk := ScratchDisk()
	if disk == "" {
		b.Skip("needs a disk to swap on: GLADSHEIM_TEST_DISK does not name it")
	}
	makeSwap(b, disk)
	path, err := unix.BytePtrFromString(disk)
	require.NoError(b, err)
	_, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(path)), 0, 0)
	require.Zero(b, errno, "swapon %s", disk)
	b.Cleanup(func() {
		_, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(path)), 0, 0)
		require.Zero(b, errno, "swapoff %s", disk)
	})
}

// makeSwap writes the head of a swap area (include/linux/swap.h, union swap_header).
func makeSwap(b *bench, disk string) {
	b.Helper()
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	require.NoError(b, err)
	defer f.Close()
	size, err := f.Seek(0, 2)
	require.NoError(b, err)
	head := make([]byte, os.Getpagesize())
	const bootBits = 1024
	binary.NativeEndian.PutUint32(head[bootBits:], 1)                               // version
	binary.NativeEndian.PutUint32(head[bootBits+4:], uint32(int(size)/len(head)-1)) // the last page
	copy(head[len(head)-10:], "SWAPSPACE2")
	_, err = f.WriteAt(head, 0)
	require.NoError(b, err)
	require.NoError(b, f.Sync())
}

func (b *bench) swapLimited(memory, swap uint64, mode ...string) service.Launch {
	return limited(b.plan(mode...), service.Limits{service.MemoryMax: service.Of(memory), service.MemorySwapMax: service.Of(swap)})
}

func lawSwapMax(b *bench) {
	b.swapping()
	const hog, memory, little = 64 * mebi, 40 * mebi, 8 * mebi
	l := b.swapLimited(memory, little, "hog-memory", fmt.Sprint(hog))
	if !b.enforces(l) {
		return
	}
	enough := b.launch(b.swapLimited(memory, 48*mebi, "hog-memory", fmt.Sprint(hog)))
	enough.ready()
	enough.lives()
	swapped := enough.number("memory.swap.current")
	require.Greater(b, swapped, uint64(hog-memory))
	require.LessOrEqual(b, swapped, uint64(48*mebi))
	require.Equal(b, service.OOMNone, enough.release().OOM)

	i := b.launch(l)
	require.Equal(b, service.Exit{Signal: syscall.SIGKILL}, i.exit())
	require.Equal(b, service.OOMOwn, i.release().OOM)

	// What fits into both lives.
	fits := b.launch(b.swapLimited(memory, little, "hog-memory", fmt.Sprint(memory-2*mebi)))
	fits.ready()
	fits.lives()
	require.LessOrEqual(b, fits.number("memory.swap.current"), uint64(little))
}

// number reads a file of the cgroup that holds one number.
func (i *incarnation) number(file string) uint64 {
	i.bench.Helper()
	var n uint64
	_, err := fmt.Sscan(i.bench.cgroupFile(i.Ref(), file), &n)
	require.NoError(i.bench, err)
	return n
}

func lawZswapMax(b *bench) {
	// What is compressed is memory of the service, too.
	const hog, memory, limit = 64 * mebi, 48 * mebi, 4 * mebi
	const enabled = "/sys/module/zswap/parameters/enabled"
	compressed := func(q service.Quota) service.Launch {
		l := b.swapLimited(memory, service.Unlimited, "hog-noise", fmt.Sprint(hog))
		l.Limits[service.MemoryZswapMax] = q
		return limited(l, l.Limits)
	}
	if !b.enforces(compressed(service.Of(limit))) {
		require.False(b, HasZswap(), "the kernel has zswap, and its limit is not enforced")
		return
	}
	b.swapping()
	before, err := os.ReadFile(enabled)
	require.NoError(b, err)
	require.NoError(b, os.WriteFile(enabled, []byte("Y"), 0o600))
	b.Cleanup(func() { require.NoError(b, os.WriteFile(enabled, before, 0o600)) })
	held := func(q service.Quota) (zswap, swapped uint64) {
		i := b.launch(compressed(q))
		i.ready()
		i.lives()
		zswap, swapped = i.number("memory.zswap.current"), i.number("memory.swap.current")
		i.release()
		return zswap, swapped
	}
	free, _ := held(service.Of(service.Unlimited))
	require.Greater(b, free, uint64(2*limit), "without a limit there is not enough of it to see one")
	some, swapped := held(service.Of(limit))
	require.LessOrEqual(b, some, uint64(limit+mebi), "stores that are under way may go beyond it")
	require.NotZero(b, some)
	require.Greater(b, swapped, uint64(hog-memory))
	none, swapped := held(service.Of(0))
	require.Zero(b, none)
	require.Greater(b, swapped, uint64(hog-memory))
	b.Logf("compressed: %d bytes without a limit, %d below %d, %d below 0", free, some, limit, none)
}
