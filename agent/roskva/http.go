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
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// maxInformation is how many provisional answers (1xx) may come before the one.
const maxInformation = 5

// askHTTP follows no redirects, uses no proxy and keeps no connection, so that a check
// reaches what it names and nothing else. It speaks over a connection of its own, since
// the client of net/http has goroutines for each, which would cost as much again.
func askHTTP(check service.Check) question {
	var body *regexp.Regexp
	if check.Body != "" {
		var err error
		if body, err = regexp.Compile(check.Body); err != nil {
			return func(context.Context) error { return err }
		}
	}
	to, err := url.Parse(check.URL)
	if err == nil && to.Scheme != "http" && to.Scheme != "https" {
		err = fmt.Errorf("%q is no scheme of HTTP", to.Scheme)
	}
	var request []byte
	if err == nil {
		request, err = requestFor(to)
	}
	if err != nil {
		return func(context.Context) error { return err }
	}
	return func(ctx context.Context) error {
		conn, err := reachHTTP(ctx, check, to)
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
		answer, err := get(conn, request)
		if err != nil {
			return fmt.Errorf("cannot read the answer of %s: %w", check.Target(), err)
		}
		text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
		switch {
		case answer.StatusCode == http.StatusSwitchingProtocols:
			return fmt.Errorf("%s answered %s, for which nobody asked", check.Target(), answer.Status)
		case err != nil:
			return fmt.Errorf("cannot read the answer of %s: %w", check.Target(), err)
		case !check.Accepts(answer.StatusCode):
			return fmt.Errorf("%s answered %s", check.Target(), answer.Status)
		case body != nil && !body.Match(text):
			return fmt.Errorf("%s answered %s with a body that does not match %q", check.Target(), answer.Status, check.Body)
		}
		return nil
	}
}

// reachHTTP connects to the server of a URL.
func reachHTTP(ctx context.Context, check service.Check, to *url.URL) (net.Conn, error) {
	port := to.Port()
	if port == "" {
		port = to.Scheme // a name that the resolver knows
	}
	var config *tls.Config
	if to.Scheme == "https" {
		config = &tls.Config{}
		if check.TLS != nil {
			var err error
			if config, err = tlsOf(ctx, check.TLS); err != nil {
				return nil, err
			}
		}
	}
	return reach(ctx, check, net.JoinHostPort(to.Hostname(), port), config)
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

// get asks, and hears the answer, whose body ends with the connection at the latest.
func get(conn net.Conn, request []byte) (*http.Response, error) {
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	answers := bufio.NewReader(io.LimitReader(conn, 2*maxAnswer))
	for range maxInformation + 1 {
		answer, err := http.ReadResponse(answers, nil)
		if err != nil || answer.StatusCode >= http.StatusOK || answer.StatusCode == http.StatusSwitchingProtocols {
			return answer, err
		}
	}
	return nil, errors.New("it never comes to an answer (1xx)")
}
