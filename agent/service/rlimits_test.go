package service

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRlimits(t *testing.T) {
	for text, want := range map[string]string{
		"stack=8MiB:max core=0": "core=0 stack=8MiB:max", "nproc=5:5": "nproc=5", "as=max": "as=max", "rttime=500000:1000000": "rttime=500000:1000000", "cpu=60:90 fsize=1024": "cpu=60:90 fsize=1KiB",
	} {
		q, err := Rlimits.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, OfText(want), q)
		require.NoError(t, Rlimits.Check(q))
	}
	for text, fault := range map[string]string{
		"": "is empty", "nofile=5": "write limits.nofile", "core=1 core=2": "core is named twice",
		"stack=2MiB:1MiB": "the hard limit is less", "nproc=1KiB": "not a whole number", "nproc": "not a whole number", "x=1": "is none of cpu, fsize",
		"as=2097152TiB": "the range is 0 to",
	} {
		_, err := Rlimits.Parse(text)
		require.ErrorContains(t, err, fault, text)
	}
	l := Limits{Rlimits: OfText("core=0"), NoFile: Of(5)}
	require.Equal(t, []Rlimit{{4, 0, 0}, {RlimitNoFile, 5, 5}}, l.OfProcesses())
	require.Empty(t, Limits{Rlimits: Of(Unlimited)}.OfProcesses())
}

func TestDevices(t *testing.T) {
	q, err := IOMax.Parse("/b:write_iops=9,read_bps=1048576,read_iops=max 8:0:read_bps=1000")
	require.NoError(t, err)
	require.Equal(t, OfText("/b:read_bps=1MiB,write_iops=9 8:0:read_bps=1000"), q)
	require.NoError(t, IOMax.Check(q))
	for text, fault := range map[string]string{
		"": "is empty", "/a": "lacks its limits", "/a:": "is none of read_bps", "/a:read_bps=0": "the range is 1 to", "/a:read_bps=max": "has no limit",
		"a:read_bps=1": "neither an absolute path", "/a:read_bps=1 /a:read_iops=1": "/a is named twice", "/a:write_iops=4294967296": "the range is 1 to 4294967295",
	} {
		_, err := IOMax.Parse(text)
		require.ErrorContains(t, err, fault, text)
	}
}

func TestHugePages(t *testing.T) {
	q, err := HugetlbMax.Parse("1GiB:0 2097152:64MiB")
	require.NoError(t, err)
	require.Equal(t, OfText("2MiB:64MiB 1GiB:0"), q)
	require.NoError(t, HugetlbMax.Check(q))
	for text, fault := range map[string]string{
		" ": "is empty", "2MiB": "lacks its limit", "2MB:4MiB": `"2MB" is not a size`, "2MiB:max": `"max" is not a size`, "4KiB:4KiB": "no size of huge pages",
		"3MiB:3MiB": "no size of huge pages", "2MiB:1MiB": "no whole number of pages", "2MiB:0 2048KiB:0": "named twice", "2MiB:2048TiB": "more than 1024TiB",
	} {
		_, err := HugetlbMax.Parse(text)
		require.ErrorContains(t, err, fault, text)
	}
	require.ErrorContains(t, HugetlbMax.Check(OfText("1GiB:0 2MiB:0")), "in canonical form")
}

func TestDeviceWeights(t *testing.T) {
	q, err := IODeviceWeight.Parse("8:0:200 /b:0010")
	require.NoError(t, err)
	require.Equal(t, OfText("/b:10 8:0:200"), q)
	require.NoError(t, IODeviceWeight.Check(q))
	for text, fault := range map[string]string{
		"": "is empty", "/a": "lacks its weight", "/a:x": "not a whole number", "/a:0": "the range is 1 to 10000", "/a:10001": "the range is 1 to 10000",
		"a:5": "neither an absolute path", "/a:1 /a:2": "/a is named twice",
	} {
		_, err := IODeviceWeight.Parse(text)
		require.ErrorContains(t, err, fault, text)
	}
}
