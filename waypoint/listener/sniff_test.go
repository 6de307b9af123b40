package listener

import "testing"

func TestJudge(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]verdict{
		"":                            undecided,
		"G":                           undecided,
		"GET":                         undecided,
		"GET ":                        undecided,
		"GET /":                       isHTTP1,
		"OPTIONS *":                   isHTTP1,
		"GET http://a/":               isHTTP1,
		"M-SEARCH *":                  isHTTP1,
		"PRI":                         undecided,
		"PRI * HTTP/2.0\r\n":          isHTTP2,
		"PROPFIND /x":                 isHTTP1,
		"CONNECT a:1":                 isHTTP1,
		"SSH-2.0-OpenSSH":             isOther,
		"EHLO mail.example":           isOther,
		"get / HTTP/1.1":              isOther,
		"\x16\x03\x01":                isOther,
		"GET\r\n":                     isOther,
		" GET /":                      isOther,
		"ABCDEFGHIJKLMNOPQRSTUVWXYZA": isOther,
	} {
		if got := judge([]byte(in)); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

// What is decided stays decided, however the bytes arrive.
func FuzzJudge(f *testing.F) {
	f.Add("GET / HTTP/1.1\r\n", 3)
	f.Add("PRI * HTTP/2.0\r\n\r\nSM", 16)
	f.Fuzz(func(t *testing.T, in string, cut int) {
		if cut < 0 || cut > len(in) {
			return
		}
		early := judge([]byte(in[:cut]))
		if late := judge([]byte(in)); early != undecided && early != late {
			t.Errorf("%q: %d after %d bytes, %d after all", in, early, cut, late)
		}
	})
}
