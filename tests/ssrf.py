"""Addresses that no fetch may follow, as data: for the fetch by itself, and for the service in front of it.

PORT is one that listens, on this machine, to whatever comes.
"""

_FORBIDDEN = """
http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f000001/ http://0177.0.0.1/ http://0/ http://0.0.0.0/
http://[::1]/ http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[64:ff9b::7f00:1]/
http://[2002:7f00:1::]/ http://[fe80::1]/ http://[fd00:ec2::254]/ http://10.0.0.1/ http://172.16.3.4/
http://192.168.1.1:8080/ http://169.254.169.254/latest/meta-data/ http://100.100.100.200/ http://168.63.129.16/
http://localhost/ http://LOCALHOST./ http://127.0.0.1.:80/ http://video.test:1/ http://user@video.test/
http://user:secret@8.8.8.8/ http://8.8.8.8@127.0.0.1/ http://１２７.０.０.１/ http://①②⑦.0.0.1/ http:///path
ftp://8.8.8.8/a gopher://8.8.8.8/ data:video/mp4;base64,AAAA javascript:1 rtsp://8.8.8.8/ concat:a|b pipe:0
http://[::1%25lo]/ http://exa_mple..test:bad/ file://8.8.8.8/etc/passwd file:///etc/passwd /etc/passwd etc/passwd
http://0x7f.0.0.1/ http://127.0.0.1%2f@8.8.8.8/ https://127.0.0.1/
"""
FORBIDDEN = tuple(_FORBIDDEN.split())

_TRAPPED = """
http://127.0.0.1:PORT/ http://localhost:PORT/ http://LocalHost:PORT/ http://localhost.:PORT/ http://[::1]:PORT/
http://127.1:PORT/ http://127.0.1:PORT/ http://2130706433:PORT/ http://0x7f000001:PORT/ http://0x7f.1:PORT/
http://017700000001:PORT/ http://0177.0.0.1:PORT/ http://0:PORT/ http://0.0.0.0:PORT/ http://[::]:PORT/
http://[::ffff:127.0.0.1]:PORT/ http://[::ffff:7f00:1]:PORT/ http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/
http://[64:ff9b::127.0.0.1]:PORT/ http://[2002:7f00:1::1]:PORT/
http://[2001:0:7f00:1::]:PORT/ http://[::127.0.0.1]:PORT/
http://[fe80::1%25lo]:PORT/ http://[::1%25lo]:PORT/ http://public.test@127.0.0.1:PORT/ http://u:p@127.0.0.1:PORT/
http://127.0.0.1:PORT\\@public.test/ http://public.test\\@127.0.0.1:PORT/ http://127.0.0.1:PORT#@public.test/
http://127.0.0.1:PORT?@public.test/ http://127%2e0%2e0%2e1:PORT/ http://127。0。0。1:PORT/ http://１２７.０.０.１:PORT/
http://①②⑦.0.0.1:PORT/ http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/ http://ｌocalhost:PORT/ http://loc\u00adalhost:PORT/ HTTP://127.0.0.1:PORT/
http://internal.test:PORT/ http://metadata.test:PORT/
http://mixed.test:PORT/ http://six.test:PORT/ http://mapped.test:PORT/
http://127.0.0.1.:PORT/ http:127.0.0.1:PORT/ http:/127.0.0.1:PORT/ //127.0.0.1:PORT/ https://127.0.0.1:PORT/
ftp://127.0.0.1:PORT/a gopher://127.0.0.1:PORT/_GET ws://127.0.0.1:PORT/ rtsp://127.0.0.1:PORT/ tcp://127.0.0.1:PORT
unix:/tmp/service.sock unix:///tmp/service.sock http+unix://%2Ftmp%2Fservice.sock/ file:///etc/passwd file:/etc/passwd
file://localhost/etc/passwd file://127.0.0.1:PORT/a /etc/passwd ../../etc/passwd /proc/self/environ FILE:///etc/passwd
concat:http://127.0.0.1:PORT/a|b subfile,,start,0,end,9,,:/etc/passwd crypto:http://127.0.0.1:PORT/ pipe:0
data:video/mp4;base64,AAAA data:text/plain,#EXTM3U data:application/x-mpegURL;base64,I0VYVE0zVQ==
jar:http://127.0.0.1:PORT/!/ cache:http://127.0.0.1:PORT/ async:http://127.0.0.1:PORT/
"""
TRAPPED = tuple(_TRAPPED.split())
"""Spellings of addresses on this machine, and of names that `ADDRESSES` leads there."""

ADDRESSES = {
    "public.test": ["127.0.0.1"],
    "video.test": ["127.0.0.1"],
    "localhost": ["127.0.0.1"],
    "localhost.": ["127.0.0.1"],
    "internal.test": ["10.0.0.5"],
    "metadata.test": ["169.254.169.254"],
    "mixed.test": ["93.184.215.14", "127.0.0.1"],
    "six.test": ["fd00:ec2::254"],
    "mapped.test": ["::ffff:127.0.0.1"],
}
"""What names resolve to; any other one to itself."""

_REDIRECTS = """
http://127.0.0.1:PORT/ //127.0.0.1:PORT/ //localhost:PORT/a http://[::1]:PORT/ http://2130706433:PORT/
http://internal.test/ http://metadata.test/latest/ http://u:p@127.0.0.1:PORT/ https://127.0.0.1:PORT/
file:///etc/passwd ftp://127.0.0.1:PORT/ gopher://127.0.0.1:PORT/ data:image/gif;base64,R0lGODlh unix:/tmp/s
http://127.0.0.1:PORT\\@public.test/ /redirect/http://127.0.0.1:PORT/ /redirect//redirect/http://localhost:PORT/
"""
REDIRECTS = tuple(_REDIRECTS.split())
"""Where a host that may be fetched sends the fetch to: the last two are chains."""
