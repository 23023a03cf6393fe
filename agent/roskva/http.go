package roskva

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"sync"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	// maxInformation is how many provisional answers (1xx) may come before the one.
	maxInformation = 5
	// maxChunkLine is how long the line may be that tells the length of a chunk.
	maxChunkLine = 4096
)

// httpServer is asked for one resource. No redirect is followed, and no proxy used, so that
// a check reaches what it names and nothing else. It is spoken without the client of net/http,
// which has goroutines for each connection and costs as much again.
func httpServer(check service.Check) (*server, error) {
	to, err := url.Parse(check.URL)
	if err != nil {
		return nil, err
	}
	s := &server{check: check}
	port := to.Port()
	switch to.Scheme {
	case "http":
		if port == "" {
			port = "80"
		}
	case "https":
		if port == "" {
			port = "443"
		}
		s.secure = func(ctx context.Context) (*tls.Config, error) {
			if check.TLS == nil {
				return &tls.Config{}, nil
			}
			return tlsOf(ctx, check.TLS)
		}
	default:
		return nil, fmt.Errorf("%q is no scheme of HTTP", to.Scheme)
	}
	s.address = net.JoinHostPort(to.Hostname(), port)
	q := &httpQuestion{server: s}
	if check.Body != "" {
		if q.wanted, err = regexp.Compile(check.Body); err != nil {
			return nil, err
		}
		s.hard = true // a pattern may take a second for 64 KiB
	}
	if q.text, err = requestFor(to); err != nil {
		return nil, err
	}
	s.begin = func() exchange { return &httpExchange{httpQuestion: q} }
	return s, nil
}

// requestFor is the question for the resource of a URL.
func requestFor(to *url.URL) ([]byte, error) {
	request, err := http.NewRequest(http.MethodGet, to.String(), nil)
	if err != nil {
		return nil, err
	}
	request.Close = true
	request.Header.Set("User-Agent", "gladsheim-health")
	if user := to.User; user != nil {
		password, _ := user.Password()
		request.SetBasicAuth(user.Username(), password)
	}
	var text bytes.Buffer
	err = request.Write(&text)
	return text.Bytes(), err
}

// httpQuestion is what all checks of a service ask.
type httpQuestion struct {
	server *server
	text   []byte
	wanted *regexp.Regexp // in the body, nil for any
}

// httpExchange finds where the answer ends (RFC 9112, section 6), and has net/http read it
// then: so it is read once, in however many pieces it comes.
type httpExchange struct {
	*httpQuestion
	provisional int // answers
	start       int // of the answer after them
	looked      int // before it no empty line ends a head or trailers
	body        int // where its body starts, 0 as long as its head has not ended
	end         int // of it, or of what is read of it; 0 as long as that is not known
	chunk       int // where the next one starts
	unchunked   int // bytes in those before it
}

func (e *httpExchange) opening() []byte { return e.text }
func (e *httpExchange) owed() []byte    { return nil }

func (e *httpExchange) hear(heard []byte, whole bool) (done bool, err error) {
	if !e.enough(heard) && !whole {
		return false, nil
	}
	return true, e.judge(heard[e.start:])
}

// enough tells whether all has come that is wanted, or what can not be understood.
func (e *httpExchange) enough(heard []byte) bool {
	for e.body == 0 {
		if line, _, ended := bytes.Cut(heard[e.start:], []byte("\n")); ended && !isStatusLine(line) {
			return true
		}
		end, ended := e.empty(heard)
		if !ended {
			return false
		}
		answer, err := readHTTP(heard[e.start:end], nil)
		switch {
		case err != nil:
			return true
		case answer.StatusCode < http.StatusOK && answer.StatusCode != http.StatusSwitchingProtocols:
			e.start, e.looked = end, end
			if e.provisional++; e.provisional > maxInformation {
				return true
			}
			continue
		}
		e.body = end
		switch {
		case answer.Body == http.NoBody:
			e.end = end
		case slices.Contains(answer.TransferEncoding, "chunked"):
			e.chunk = end
		case answer.ContentLength >= 0:
			e.end = end + int(min(answer.ContentLength, maxAnswer))
		default: // it ends with the connection
			e.end = end + maxAnswer
		}
	}
	if e.end == 0 {
		return e.unchunk(heard)
	}
	return len(heard) >= e.end
}

// isStatusLine tells whether the first line of an answer is one of HTTP at all.
func isStatusLine(line []byte) bool {
	version, _, _ := bytes.Cut(line, []byte(" "))
	_, _, is := http.ParseHTTPVersion(string(version))
	return is
}

// unchunk goes from chunk to chunk (RFC 9112, section 7.1), and is enough for the last, for
// what is wanted of them, or for what is none.
func (e *httpExchange) unchunk(heard []byte) bool {
	for e.chunk < len(heard) {
		line, _, ended := bytes.Cut(heard[e.chunk:], []byte("\n"))
		if !ended {
			return len(line) > maxChunkLine
		}
		digits, _, _ := bytes.Cut(line, []byte(";"))
		size, err := strconv.ParseUint(string(bytes.TrimRight(digits, " \t\r")), 16, 64)
		start, wanted := e.chunk+len(line)+1, maxAnswer-e.unchunked
		switch {
		case err != nil:
			return true
		case size == 0: // the trailers, if any, end as a head does
			e.looked = max(e.looked, start-1)
			_, ended := e.empty(heard)
			return ended
		case size >= uint64(wanted):
			e.end = start + wanted
			return len(heard) >= e.end
		}
		e.chunk, e.unchunked = start+int(size)+len("\r\n"), e.unchunked+int(size)
	}
	return false
}

// empty is where the first empty line ends that follows on another.
func (e *httpExchange) empty(heard []byte) (end int, ended bool) {
	for {
		line, rest, ended := bytes.Cut(heard[e.looked:], []byte("\n"))
		after := e.looked + len(line) + 1
		switch {
		case !ended:
			return 0, false
		case bytes.HasPrefix(rest, []byte("\n")):
			return after + len("\n"), true
		case bytes.HasPrefix(rest, []byte("\r\n")):
			return after + len("\r\n"), true
		case len(rest) < len("\r\n"): // it may be one
			return 0, false
		}
		e.looked = after
	}
}

// judge tells why a service is not well that gives such an answer.
func (e *httpExchange) judge(heard []byte) error {
	if e.provisional > maxInformation {
		return e.server.unread(errors.New("it never comes to an answer (1xx)"))
	}
	var text []byte
	answer, err := readHTTP(heard, &text)
	if err != nil {
		return e.server.unread(err)
	}
	check := e.server.check
	switch {
	case answer.StatusCode == http.StatusSwitchingProtocols:
		return fmt.Errorf("%s answered %s, for which nobody asked", check.Target(), answer.Status)
	case !check.Accepts(answer.StatusCode):
		return fmt.Errorf("%s answered %s", check.Target(), answer.Status)
	case e.wanted != nil && !e.wanted.Match(text):
		return fmt.Errorf("%s answered %s with a body that does not match %q", check.Target(), answer.Status, check.Body)
	}
	return nil
}

// answers are readers of 4 KiB, which would be half of what a check allocates.
var answers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// readHTTP reads an answer and what is wanted of its body, if that is.
func readHTTP(heard []byte, body *[]byte) (*http.Response, error) {
	r := answers.Get().(*bufio.Reader)
	defer answers.Put(r)
	r.Reset(bytes.NewReader(heard))
	answer, err := http.ReadResponse(r, nil)
	if err == nil && body != nil {
		*body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	}
	return answer, err
}
