package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func store(t *testing.T) Store { return Store{Dir: t.TempDir(), Log: t.Logf} }

// write returns a build that counts its calls.
func write(content string, calls *atomic.Int32) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		calls.Add(1)
		return os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644)
	}
}

func TestKeyTellsPartsApart(t *testing.T) {
	assert.Equal(t, Key("a", "b"), Key("a", "b"))
	assert.NotEqual(t, Key("a", "b"), Key("ab"))
	assert.NotEqual(t, Key("a", "b"), Key("b", "a"))
	assert.NotEqual(t, Key("a", ""), Key("a"))
}

func TestGetBuildsOnce(t *testing.T) {
	s := store(t)
	var calls atomic.Int32
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			entry, err := s.Get(t.Context(), "thing", Key("1"), write("hello", &calls))
			assert.NoError(t, err)
			assert.FileExists(t, entry.Path("file"))
		})
	}
	wait.Wait()
	assert.EqualValues(t, 1, calls.Load())
}

func TestGetBuildsAnewWhatChanged(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"other bytes": func(path string) error { return os.WriteFile(path, []byte("jello"), 0o644) },
		"truncated":   func(path string) error { return os.Truncate(path, 2) },
		"gone":        os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			var calls atomic.Int32
			before, err := s.Get(t.Context(), "thing", Key("1"), write("hello", &calls))
			require.NoError(t, err)
			require.NoError(t, spoil(before.Path("file")))
			after, err := s.Get(t.Context(), "thing", Key("1"), write("hello", &calls))
			require.NoError(t, err)
			assert.EqualValues(t, 2, calls.Load())
			assert.Equal(t, before.Hash, after.Hash)
		})
	}
}

func TestGetKeepsNothingOfAFailedBuild(t *testing.T) {
	s := store(t)
	broken := errors.New("broken")
	_, err := s.Get(t.Context(), "thing", Key("1"), func(_ context.Context, dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "file"), []byte("half"), 0o644), broken)
	})
	require.ErrorIs(t, err, broken)
	left, err := filepath.Glob(filepath.Join(s.Dir, "thing-*", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestHashDoesNotDependOnHoles(t *testing.T) {
	dir := t.TempDir()
	sparse, full := filepath.Join(dir, "sparse"), filepath.Join(dir, "full")
	content := make([]byte, 3*blockSize+100)
	copy(content[2*blockSize+7:], "data")
	require.NoError(t, os.WriteFile(full, content, 0o644))
	file, err := os.Create(sparse)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte("data"), 2*blockSize+7)
	require.NoError(t, err)
	require.NoError(t, file.Truncate(int64(len(content))))
	require.NoError(t, file.Close())

	a, err := HashFile(sparse)
	require.NoError(t, err)
	b, err := HashFile(full)
	require.NoError(t, err)
	assert.Equal(t, a, b)

	require.NoError(t, os.Truncate(full, int64(len(content)-1)))
	shorter, err := HashFile(full)
	require.NoError(t, err)
	assert.NotEqual(t, a, shorter)
	content[0] = 1
	require.NoError(t, os.WriteFile(full, content, 0o644))
	other, err := HashFile(full)
	require.NoError(t, err)
	assert.NotEqual(t, a, other)
}
