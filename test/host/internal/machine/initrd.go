package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/gladsheim/gladsheim/test/host/internal/cache"
	"github.com/gladsheim/gladsheim/test/host/internal/image"
)

// writeInitrd writes the initramfs: the guest program and the modules it needs to find the root.
func writeInitrd(path, guest string, img cache.Entry) error {
	program, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	addFile(&archive, "init", 0o100755, program)
	for i, name := range image.Modules {
		module, err := os.ReadFile(img.Path(name + ".ko"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // built in
		}
		if err != nil {
			return err
		}
		// The guest program loads them in the order of their names.
		addFile(&archive, fmt.Sprintf("%02d-%s.ko", i, name), 0o100644, module)
	}
	addFile(&archive, "TRAILER!!!", 0, nil)
	return os.WriteFile(path, archive.Bytes(), 0o644)
}

// addFile adds a file to a cpio archive in the "newc" format, the only one the kernel reads.
func addFile(archive *bytes.Buffer, name string, mode int, content []byte) {
	const inode, uid, gid, links, mtime, devMajor, devMinor, specialMajor, specialMinor, checksum = 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
	fmt.Fprintf(archive, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, mode, uid, gid, links, mtime, len(content), devMajor, devMinor, specialMajor, specialMinor, len(name)+1, checksum, name)
	pad(archive)
	archive.Write(content)
	pad(archive)
}

// pad fills up to a multiple of four.
func pad(archive *bytes.Buffer) {
	archive.Write(make([]byte, -archive.Len()&3))
}
