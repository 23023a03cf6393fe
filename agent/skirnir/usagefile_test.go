package skirnir

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

const usageSize = 8 << 10

func fine(io.ReaderAt) error { return nil }

func TestUsageComesBack(t *testing.T) {
	s, _, run := openStore(t)
	web, path := service.MustName("web"), filepath.Join(run, "usage", "web.ring")
	open := func(boot string, make bool) *UsageFile {
		u, fault, err := s.OpenUsage(web, boot, usageSize, fine, make)
		require.NoError(t, err)
		require.NoError(t, fault)
		return u
	}
	require.Nil(t, open("a", false))
	require.NoDirExists(t, filepath.Dir(path), "nothing is made for nobody")
	u := open("a", true)
	_, err := u.WriteAt([]byte("hello"), usageSize-5)
	require.NoError(t, err)
	_, err = u.WriteAt([]byte("hello"), 0)
	require.NoError(t, err)
	// Killed: it is not closed.
	back := open("a", false)
	all, err := io.ReadAll(io.NewSectionReader(back, 0, 2*usageSize))
	require.NoError(t, err)
	want := make([]byte, usageSize)
	copy(want, "hello")
	copy(want[usageSize-5:], "hello")
	require.Equal(t, want, all)
	require.NoError(t, back.Close())
	require.NoError(t, u.Close())

	require.Nil(t, open("b", false), "of another boot")
	u = open("b", true)
	all, err = io.ReadAll(io.NewSectionReader(u, 0, usageSize))
	require.NoError(t, err)
	require.Equal(t, make([]byte, usageSize), all)
	require.NoError(t, u.Close())
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, s.SweepUsage(func(name service.Name) bool { return name == web }))
	require.FileExists(t, path)
	require.NoError(t, s.ForgetUsage(web))
	require.NoError(t, s.ForgetUsage(web), "forgetting twice is forgetting")
	require.NoFileExists(t, path)
}

// What is no such file is set aside, and said to be.
func TestStrangeUsageFiles(t *testing.T) {
	s, _, run := openStore(t)
	web, dir := service.MustName("web"), filepath.Join(run, "usage")
	path := filepath.Join(dir, "web.ring")
	u, _, err := s.OpenUsage(web, "a", usageSize, fine, true)
	require.NoError(t, err)
	require.NoError(t, u.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	other, _, err := s.OpenUsage(service.MustName("db"), "a", usageSize, fine, true)
	require.NoError(t, err)
	require.NoError(t, other.Close())
	whose, err := os.ReadFile(filepath.Join(dir, "db.ring"))
	require.NoError(t, err)
	wrong := errors.New("it is wrong")
	for what, tt := range map[string]struct {
		put   func() error
		check error
	}{
		"nothing":      {func() error { return os.WriteFile(path, nil, 0o600) }, nil},
		"a head alone": {func() error { return os.WriteFile(path, good[:usageHead], 0o600) }, nil},
		"too much":     {func() error { return os.WriteFile(path, append(good[:len(good):len(good)], 0), 0o600) }, nil},
		"no head":      {func() error { return os.WriteFile(path, make([]byte, len(good)), 0o600) }, nil},
		"another version": {func() error {
			return os.WriteFile(path, bytes.Replace(good, []byte(`"format":1`), []byte(`"format":2`), 1), 0o600)
		}, nil},
		"another service":  {func() error { return os.WriteFile(path, whose, 0o600) }, nil},
		"wrong within":     {func() error { return os.WriteFile(path, good, 0o600) }, wrong},
		"a directory":      {func() error { return os.Mkdir(path, 0o700) }, nil},
		"a link elsewhere": {func() error { return os.Symlink(filepath.Join(dir, "db.ring"), path) }, nil},
		"a pipe":           {func() error { return unix.Mkfifo(path, 0o600) }, nil},
	} {
		require.NoError(t, os.RemoveAll(path))
		require.NoError(t, tt.put(), what)
		u, fault, err := s.OpenUsage(web, "a", usageSize, func(io.ReaderAt) error { return tt.check }, true)
		if what == "a directory" { // the host does not let us look
			require.Error(t, err, what)
			continue
		}
		require.NoError(t, err, what)
		require.ErrorContains(t, fault, "set aside as web.ring.corrupt-", what)
		require.NotNil(t, u, what)
		require.NoError(t, u.Close())
		fresh, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, good, fresh, what)
	}
	untouched, err := os.ReadFile(filepath.Join(dir, "db.ring"))
	require.NoError(t, err)
	require.Equal(t, whose, untouched)
}

// Whichever call fails, there is an error and nothing half made is taken up, and the
// next attempt succeeds.
func TestUsageFileThatFails(t *testing.T) {
	s, _, run := openStore(t)
	web := service.MustName("web")
	failed := 0
	for fail := 1; ; fail++ {
		calls := 0
		s.Fault = func(string, string) error {
			if calls++; calls == fail {
				return unix.ENOSPC
			}
			return nil
		}
		u, fault, err := s.OpenUsage(web, "a", usageSize, fine, true)
		require.NoError(t, fault)
		s.Fault = nil
		if calls < fail {
			require.NoError(t, err)
			require.NoError(t, u.Close())
			break
		}
		failed++
		require.ErrorIs(t, err, unix.ENOSPC)
		require.Nil(t, u)
		left, err := filepath.Glob(filepath.Join(run, "usage", "*"))
		require.NoError(t, err)
		require.Empty(t, left)
		u, fault, err = s.OpenUsage(web, "a", usageSize, fine, true)
		require.NoError(t, errors.Join(fault, err))
		require.NoError(t, u.Close())
		require.NoError(t, os.RemoveAll(filepath.Join(run, "usage")))
	}
	require.GreaterOrEqual(t, failed, 5, "open, mkdir, open, write, rename")
}
