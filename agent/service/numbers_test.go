package service

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseNumbers(t *testing.T) {
	for text, want := range map[string]string{
		"": "", " ": "", "0": "0", "0-3,8": "0-3,8", "8,0-3": "0-3,8", "1,0,2": "0-2", "0-3,2-5": "0-5", "0-3,4": "0-4",
		"7-7": "7", " 1 , 3 ": "1,3", "8191": "8191", "0-9,2-3": "0-9",
	} {
		got, err := ParseNumbers(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got.String(), text)
		again, err := ParseNumbers(got.String())
		require.NoError(t, err)
		require.Equal(t, got.String(), again.String())
	}
	for text, fault := range map[string]string{
		",": `"" is not a number; write numbers and spans of them, such as "0-3,8"`, "a": `"a" is not a number`, "1-": `"1-" lacks an end; write numbers`,
		"0, -1": `"-1" lacks an end`, "-": `"-" lacks an end`, "3-1": "3-1 ends before it begins", "8192": "8192 is more than 8191, the highest there can be",
		"0-7:2/4": `"7:2/4" is not a number`, "4294967296": "is not a number",
	} {
		_, err := ParseNumbers(text)
		require.ErrorContains(t, err, fault, text)
	}
}

func TestNumbers(t *testing.T) {
	of := func(text string) Numbers {
		n, err := ParseNumbers(text)
		require.NoError(t, err)
		return n
	}
	require.Equal(t, "4-5,9", of("2-5,9").Without(of("0-3")).String())
	require.Empty(t, of("2-5").Without(of("0-9")))
	require.True(t, of("2-5").Has(5))
	require.False(t, of("2-5").Has(6))
	require.Equal(t, []byte{0b1111, 1}, of("0-3,8").Mask())
	require.Equal(t, []byte{}, of("").Mask())
	require.Equal(t, []byte{0b1000_0000}, of("7").Mask())
}

func TestTextIsCanonical(t *testing.T) {
	q, err := CPUSetCPUs.Parse("8,0-3")
	require.NoError(t, err)
	require.Equal(t, OfText("0-3,8"), q)
	require.Equal(t, "0-3,8", CPUSetCPUs.Format(q))
	require.NoError(t, CPUSetCPUs.Check(q))
	require.NoError(t, CPUSetCPUs.Check(Of(Unlimited)))
	require.ErrorContains(t, CPUSetCPUs.Check(OfText("8,0-3")), "in canonical form that is")
	require.ErrorContains(t, CPUSetCPUs.Check(Of(3)), "cpuset_cpus: is empty")
	require.ErrorContains(t, PidsMax.Check(Quota{Value: 3, Text: "3", Set: true}), "it wants a number")
	require.Error(t, CPUSetCPUs.Check(Quota{Value: Unlimited, Text: "3", Set: true}))
}

func TestOffer(t *testing.T) {
	var a Applied
	a[CPUSetMems].Requested = OfText("0")
	a[MemoryMax] = LimitReport{Applied: Of(5), Effective: Of(5), Enforced: true}
	a.Offer(Enforcement{Limits: [NumResources]bool{CPUSetCPUs: true, CPUSetMems: true, MemoryMax: true, CPUWeight: true}})
	require.Equal(t, Applied{
		CPUSetCPUs: {Applied: Of(Unlimited), Effective: Of(Unlimited), Enforced: true},
		CPUSetMems: {Requested: OfText("0")},
		MemoryMax:  {Applied: Of(5), Effective: Of(5), Enforced: true},
	}, a)
}
