package wire

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFramesArriveAsSent(t *testing.T) {
	var line bytes.Buffer
	conn := NewConn(&line)
	require.NoError(t, conn.Send(Ready, nil))
	require.NoError(t, conn.SendJSON(Done, Outcome{Code: 137}))

	kind, payload, err := conn.Receive()
	require.NoError(t, err)
	assert.Equal(t, Ready, kind)
	assert.Empty(t, payload)
	kind, payload, err = conn.Receive()
	require.NoError(t, err)
	assert.Equal(t, Done, kind)
	assert.JSONEq(t, `{"Code":137,"Missing":null}`, string(payload))
	_, _, err = conn.Receive()
	assert.Equal(t, io.EOF, err)
}

func TestWriterSplitsAndKeepsOrder(t *testing.T) {
	var line bytes.Buffer
	conn := NewConn(&line)
	sent := make([]byte, 5*chunk/2)
	for i := range sent {
		sent[i] = byte(rand.Int())
	}
	n, err := conn.Writer(Stdout).Write(sent)
	require.NoError(t, err)
	assert.Equal(t, len(sent), n)

	var got []byte
	for len(got) < len(sent) {
		kind, payload, err := conn.Receive()
		require.NoError(t, err)
		assert.Equal(t, Stdout, kind)
		got = append(got, payload...)
	}
	assert.Equal(t, sent, got)
}

func TestReceiveRefusesWhatIsNoFrame(t *testing.T) {
	for name, line := range map[string]string{
		"kind":      "\x00\x00\x00\x00\x00",
		"size":      "\x01\xff\xff\xff\xff",
		"truncated": "\x01\x00\x00\x00\x02x",
		"header":    "\x01\x00",
	} {
		_, _, err := NewConn(bytes.NewBufferString(line)).Receive()
		assert.Error(t, err, name)
		assert.NotEqual(t, io.EOF, err, name)
	}
}
