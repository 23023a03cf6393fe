package config

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/test/unprivileged"
)

func definitionOf(name string) string {
	return fmt.Sprintf(`{"name": %q, "exec": ["/bin/true"]}`, name)
}

// directory is a directory of definitions that nobody else can write.
func directory(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "services.d")
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir
}

func names(definitions []Definition) (names []string) {
	for _, d := range definitions {
		names = append(names, d.Spec.Name.String())
	}
	return names
}

func TestReadDefinitions(t *testing.T) {
	dir := directory(t)
	write(t, dir, "web.json", definitionOf("web"))
	write(t, dir, "db.json", definitionOf("db"))
	write(t, dir, "half.json", definitionOf("half")[:20])
	write(t, dir, "README", "not a definition")
	write(t, dir, "web.json~", "an editor's")
	write(t, dir, ".web.json", "half of what an editor wri")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "old"), 0o755))

	definitions, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, []string{"db", "web"}, names(definitions))
	require.Equal(t, filepath.Join(dir, "web.json"), definitions[1].Source)
	require.Equal(t, definitionOf("web"), string(definitions[1].Document))
	require.Equal(t, filepath.Join(dir, "half.json")+":1:18: a string begins here and has no end", faults.Error())
	require.True(t, faults.Hide(dir, service.MustName("half")), "what is known of it stays")
	require.False(t, faults.Hide(dir, service.MustName("gone")))
	write(t, dir, "new-name.json", definitionOf("moved"))
	_, faults = ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.True(t, faults.Hide(dir, service.MustName("moved")), "it is there, in the wrong file")
}

func TestReadDefinitionsWithoutDirectory(t *testing.T) {
	definitions, faults := ReadDefinitions(filepath.Join(t.TempDir(), "no"), service.Defaults(), OwnFile)
	require.Empty(t, definitions)
	require.Empty(t, faults)

	file := write(t, t.TempDir(), "file", "")
	_, faults = ReadDefinitions(file, service.Defaults(), OwnFile)
	require.Equal(t, file+": cannot open the directory: not a directory", faults.Error())
	require.True(t, faults.Hide(file, service.MustName("any")), "nothing is known of any")
}

func TestFileAndNameMatch(t *testing.T) {
	dir := directory(t)
	write(t, dir, "web.json", definitionOf("web"))
	write(t, dir, "web2.json", "\n"+definitionOf("web"))
	write(t, dir, "WEB.JSON", definitionOf("web"))
	write(t, dir, "a\nb.json", definitionOf("a"))

	definitions, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, []string{"web"}, names(definitions))
	at := func(file string) string { return filepath.Join(dir, file) }
	require.Equal(t, []string{
		fmt.Sprintf("%q", at("a\nb.json")) + `:1:10: name: is "a", which is defined in a.json only, not in "a\nb.json"`,
		at("WEB.JSON") + `:1:10: name: is "web", which is defined in web.json only, not in WEB.JSON; there is a web.json too; ` + at("web2.json") + ":2:10 has the same name",
		at("web2.json") + `:2:10: name: is "web", which is defined in web.json only, not in web2.json; there is a web.json too; ` + at("WEB.JSON") + ":1:10 has the same name",
	}, strings.Split(faults.Error(), "\n"))
}

// TestOnlyRegularFiles: each of these is refused at once, none is waited for.
func TestOnlyRegularFiles(t *testing.T) {
	dir := directory(t)
	path := func(file string) string { return filepath.Join(dir, file) }
	good := write(t, t.TempDir(), "link.json", definitionOf("link"))
	require.NoError(t, os.Symlink(good, path("link.json")))
	require.NoError(t, os.Symlink("/proc/self/fd/0", path("stdin.json")))
	require.NoError(t, os.Symlink("/dev/zero", path("zero.json")))
	require.NoError(t, os.Symlink("loop.json", path("loop.json")))
	require.NoError(t, os.Mkdir(path("dir.json"), 0o755))
	require.NoError(t, unix.Mkfifo(path("fifo.json"), 0o600))
	socket, err := net.Listen("unix", path("socket.json"))
	require.NoError(t, err)
	defer socket.Close()
	want := map[string]string{
		"link.json": "a symbolic link", "stdin.json": "a symbolic link", "zero.json": "a symbolic link", "loop.json": "a symbolic link",
		"dir.json": "a directory", "fifo.json": "a FIFO", "socket.json": "a socket",
	}
	if unix.Mknod(path("device.json"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) == nil { // needs privilege
		want["device.json"] = "a device"
	}
	for _, trust := range []Trust{AnyFile, OwnFile} {
		definitions, faults := ReadDefinitions(dir, service.Defaults(), trust)
		require.Empty(t, definitions)
		got := map[string]string{}
		for _, f := range faults {
			got[filepath.Base(f.File)] = strings.TrimSuffix(strings.TrimPrefix(f.Message, "it is "), "; only regular files are read")
		}
		require.Equal(t, want, got)
	}
	for _, magic := range []string{"/proc/self/fd/0", "/dev/null", "/proc/self/exe"} {
		_, err := ReadFile(magic, AnyFile)
		require.ErrorContains(t, err, "only regular files are read", magic)
	}
	_, err = ReadFile("/proc/self/status", AnyFile)
	require.ErrorContains(t, err, "changed while it was read", "a file that has no size has no end to trust")
}

func TestOnlyOwnFiles(t *testing.T) {
	dir := directory(t)
	for file, mode := range map[string]fs.FileMode{"group.json": 0o664, "other.json": 0o646, "fine.json": 0o644} {
		write(t, dir, file, definitionOf(strings.TrimSuffix(file, ".json")))
		require.NoError(t, os.Chmod(filepath.Join(dir, file), mode))
	}
	write(t, dir, "twice.json", definitionOf("twice"))
	require.NoError(t, os.Link(filepath.Join(dir, "twice.json"), filepath.Join(t.TempDir(), "elsewhere")))

	definitions, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, []string{"fine"}, names(definitions))
	require.Equal(t, []string{
		filepath.Join(dir, "group.json") + ": its mode is 0664, which lets others write it; run: chmod go-w",
		filepath.Join(dir, "other.json") + ": its mode is 0646, which lets others write it; run: chmod go-w",
		filepath.Join(dir, "twice.json") + ": it has 2 hard links; a file with another name elsewhere is not trusted",
	}, strings.Split(faults.Error(), "\n"))

	definitions, faults = ReadDefinitions(dir, service.Defaults(), AnyFile)
	require.Len(t, definitions, 4)
	require.Empty(t, faults)

	require.NoError(t, os.Chmod(dir, 0o777))
	_, faults = ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, dir+": its mode is 0777, which lets others write it; run: chmod go-w", faults.Error())
}

func TestForeignFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	dir := directory(t)
	path := write(t, dir, "web.json", definitionOf("web"))
	require.NoError(t, os.Chown(path, 12345, 0))
	_, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, path+": it belongs to user 12345 and has mode 0600; it must belong to root or to user 0", faults.Error())
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	_, err := ReadFile(filepath.Join(dir, "no.json"), OwnFile)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, service.Invalid, service.KindOf(err))
	require.EqualError(t, err, "cannot read "+filepath.Join(dir, "no.json")+": no such file or directory")

	data, err := ReadFile(write(t, dir, "full.json", strings.Repeat(" ", maxBytes)), OwnFile)
	require.NoError(t, err)
	require.Len(t, data, maxBytes)
	_, err = ReadFile(write(t, dir, "big.json", strings.Repeat(" ", maxBytes+1)), OwnFile)
	require.ErrorContains(t, err, "it has 1048577 bytes; at most 1048576 are read")
	data, err = ReadFile(write(t, dir, "empty.json", ""), OwnFile)
	require.NoError(t, err)
	require.Empty(t, data)
}

func TestTooManyFiles(t *testing.T) {
	dir := directory(t)
	for i := range maxDefinitionFiles + 1 {
		write(t, dir, fmt.Sprintf("s%d.json", i), "{")
	}
	_, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, dir+": it has more than 4096 definition files", faults.Error())
}

// TestHalfWritten reads while a file is written byte by byte, in place: what is
// accepted is what stood there before or after, never something between.
func TestHalfWritten(t *testing.T) {
	dir := directory(t)
	before := `{"name": "web", "exec": ["/bin/true", "before", "` + strings.Repeat("x", 200) + `"]}`
	after := `{"name": "web", "exec": ["/bin/true", "after"]}`
	path := write(t, dir, "web.json", before)
	var reads atomic.Int64
	var writer sync.WaitGroup
	stop := make(chan struct{})
	defer writer.Wait()
	defer close(stop)
	writer.Go(func() {
		for {
			for _, document := range []string{after, before} {
				if err := writeByBytes(path, document); err != nil {
					t.Error(err)
					return
				}
				// What is complete is there for one whole read.
				for seen := reads.Load(); reads.Load() < seen+2; runtime.Gosched() {
					select {
					case <-stop:
						return
					default:
					}
				}
			}
		}
	})
	accepted, refused := map[string]int{}, 0
	over := time.After(30 * time.Second)
	for accepted[before] == 0 || accepted[after] == 0 || refused == 0 {
		select {
		case <-over:
			t.Fatalf("accepted were %v, refused %d", accepted, refused)
		default:
		}
		definitions, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
		require.Equal(t, len(definitions) == 0, faults.Hide(dir, service.MustName("web")), "it is read or hidden, never gone")
		if len(definitions) == 0 {
			refused++
		}
		for _, d := range definitions {
			require.Contains(t, []string{before, after}, string(d.Document))
			accepted[string(d.Document)]++
		}
		reads.Add(1)
	}
}

// writeByBytes writes as an editor must not.
func writeByBytes(path, document string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	for i := range len(document) {
		if _, err := f.WriteString(document[i : i+1]); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// grantWrite lets another user write a file, by an access control list alone:
// the mode of its owner, group and others stays what it was (acl(5)).
func grantWrite(t *testing.T, path string) {
	t.Helper()
	const version, read, write, nobodys = 2, 4, 2, 1<<32 - 1
	list := binary.LittleEndian.AppendUint32(nil, version)
	for _, e := range []struct {
		tag, may uint16
		id       uint32
	}{
		{0x01, read | write, nobodys}, // the owner
		{0x02, read | write, 12345},   // a user
		{0x04, read, nobodys},         // the group
		{0x10, read | write, nobodys}, // the mask
		{0x20, read, nobodys},         // others
	} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.may)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	err := unix.Setxattr(path, "system.posix_acl_access", list, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this file system has no access control lists")
	}
	require.NoError(t, err)
}

func TestAccessControlLists(t *testing.T) {
	dir := directory(t)
	path := write(t, dir, "web.json", definitionOf("web"))
	require.NoError(t, os.Chmod(path, 0o644))
	_, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Empty(t, faults)
	grantWrite(t, path)
	_, faults = ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, path+": its mode is 0664, which lets others write it; run: chmod go-w", faults.Error())
	require.True(t, faults.Hide(dir, service.MustName("web")))
	require.NoError(t, os.Chmod(path, 0o644), "which takes the list's rights away")
	_, faults = ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Empty(t, faults)

	grantWrite(t, dir)
	_, faults = ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.ErrorContains(t, faults, dir+": its mode is")
}

func TestUnreadable(t *testing.T) {
	if !unprivileged.User(t) {
		return
	}
	dir := directory(t)
	path := write(t, dir, "web.json", definitionOf("web"))
	write(t, dir, "db.json", definitionOf("db"))
	require.NoError(t, os.Chmod(path, 0))
	definitions, faults := ReadDefinitions(dir, service.Defaults(), OwnFile)
	require.Equal(t, path+": permission denied", faults.Error())
	require.Equal(t, []string{"db"}, names(definitions), "the others are read")
	require.True(t, faults.Hide(dir, service.MustName("web")))
	_, err := ReadFile(path, OwnFile)
	require.ErrorIs(t, err, fs.ErrPermission)
}
