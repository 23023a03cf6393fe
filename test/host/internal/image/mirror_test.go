package image

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMirrorIn(t *testing.T) {
	for sources, want := range map[string]string{
		"# deb http://old.example/debian sid main\ndeb http://a.example/debian/ bookworm main": "http://a.example/debian",
		"deb [arch=amd64 signed-by=/k.gpg] https://b.example/mirror/debian bookworm main":      "https://b.example/mirror/debian",
		"Types: deb\nURIs: http://c.example/debian\nSuites: trixie":                            "http://c.example/debian",
		"deb http://d.example/debian-security bookworm-security main":                          "",
		"deb https://e.example/apt stable main\ndeb-src http://e.example/debian sid main":      "",
		"": "",
	} {
		got, found := mirrorIn(sources)
		assert.Equal(t, want, got, sources)
		assert.Equal(t, want != "", found, sources)
	}
}

func TestFindMirrorWithoutApt(t *testing.T) {
	got, err := findMirror(t.TempDir())
	require.NoError(t, err)
	assert.Equal(t, defaultMirror, got)
}
