import TensorFiles
import Testing

/// Everything that a damaged or hostile header can claim.
struct SafetensorsHeaderTests {
  struct Case: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let bytes: [UInt8]
    let code: TensorFileError.Code

    init(_ name: String, _ code: TensorFileError.Code, _ bytes: [UInt8]) {
      testDescription = name
      self.bytes = bytes
      self.code = code
    }

    /// A file with this header.
    init(_ name: String, _ code: TensorFileError.Code, _ header: String, data: Int = 0) {
      self.init(name, code, safetensors(header, dataCount: data))
    }

    /// A file with one tensor "a" and 4 bytes of data.
    init(
      _ name: String,
      _ code: TensorFileError.Code,
      dtype: String = #""F32""#,
      shape: String = "[1]",
      offsets: String = "[0,4]"
    ) {
      let entry = #"{"dtype":\#(dtype),"shape":\#(shape),"data_offsets":\#(offsets)}"#
      self.init(name, code, #"{"a":\#(entry)}"#, data: 4)
    }
  }

  private static let good = #"{"dtype":"I8","shape":[4],"data_offsets":[0,4]}"#

  private static let lengths: [Case] = [
    Case("empty file", .truncated, [UInt8]()),
    Case("seven bytes", .truncated, [1, 0, 0, 0, 0, 0, 0]),
    Case("length 0", .malformed, [0, 0, 0, 0, 0, 0, 0, 0]),
    Case("length 0 before data", .malformed, [0, 0, 0, 0, 0, 0, 0, 0, 0x7B, 0x7D]),
    Case("length beyond the file", .truncated, [3, 0, 0, 0, 0, 0, 0, 0, 0x7B, 0x7D]),
    Case("length 100 MB", .truncated, [0x00, 0xE1, 0xF5, 0x05, 0, 0, 0, 0, 0x7B, 0x7D]),
    Case("length above 100 MB", .tooLarge, [0x01, 0xE1, 0xF5, 0x05, 0, 0, 0, 0, 0x7B, 0x7D]),
    Case("length 2⁶³", .tooLarge, [0, 0, 0, 0, 0, 0, 0, 0x80, 0x7B, 0x7D]),
    Case("length 2⁶⁴ − 1", .tooLarge, [UInt8](repeating: 0xFF, count: 8) + [0x7B, 0x7D]),
  ]

  private static let texts: [Case] = [
    Case("begins with a space", .malformed, " {}"),
    Case("begins with a byte-order mark", .malformed, "\u{FEFF}{}"),
    Case("an array", .malformed, "[]"),
    Case("a string", .malformed, #""{}""#),
    Case("not closed", .malformed, "{"),
    Case("text after it", .malformed, "{}x"),
    Case("two objects", .malformed, "{}{}"),
    Case("zero bytes after it", .malformed, "{}\0\0"),
    Case("comma only", .malformed, "{,}"),
    Case("trailing comma", .malformed, #"{"a":\#(good),}"#, data: 4),
    Case("missing comma", .malformed, #"{"a":\#(good) "b":\#(good)}"#, data: 4),
    Case("missing colon", .malformed, #"{"a"\#(good)}"#, data: 4),
    Case("single quotes", .malformed, "{'a':\(good)}", data: 4),
    Case("a comment", .malformed, "{/**/}"),
    Case("name not closed", .malformed, #"{"a"#),
    Case("name ends in a backslash", .malformed, #"{"a\"#),
    Case("unknown escape", .malformed, #"{"\x":\#(good)}"#, data: 4),
    Case("short escape", .malformed, #"{"\u12":\#(good)}"#, data: 4),
    Case("lone high surrogate", .malformed, #"{"\ud800":\#(good)}"#, data: 4),
    Case("lone low surrogate", .malformed, #"{"\udc00":\#(good)}"#, data: 4),
    Case("two high surrogates", .malformed, #"{"\ud800\ud800":\#(good)}"#, data: 4),
    Case("blank in a surrogate pair", .malformed, #"{"\ud83d\ ude00":\#(good)}"#, data: 4),
    Case("bare control character", .malformed, "{\"a\nb\":\(good)}", data: 4),
    Case("not UTF-8", .malformed, safetensors([0x7B, 0x22, 0xFF, 0x22, 0x3A, 0x31, 0x7D])),
    Case("not UTF-8 outside strings", .malformed, safetensors([0x7B, 0xC3, 0x28, 0x7D])),
    Case("overlong UTF-8", .malformed, safetensors([0x7B, 0x22, 0xC0, 0xAF, 0x22, 0x3A, 0x7D])),
  ]

  private static let structures: [Case] = [
    Case("name used twice", .malformed, #"{"a":\#(good),"a":\#(good)}"#, data: 4),
    Case("name used twice in disguise", .malformed, #"{"a":\#(good),"\u0061":\#(good)}"#, data: 4),
    Case("entry is null", .malformed, #"{"a":null}"#),
    Case("entry is an array", .malformed, #"{"a":[]}"#),
    Case("entry is empty", .malformed, #"{"a":{}}"#),
    Case("no dtype", .malformed, #"{"a":{"shape":[4],"data_offsets":[0,4]}}"#, data: 4),
    Case("no shape", .malformed, #"{"a":{"dtype":"I8","data_offsets":[0,4]}}"#, data: 4),
    Case("no data_offsets", .malformed, #"{"a":{"dtype":"I8","shape":[4]}}"#, data: 4),
    Case("another key", .malformed, #"{"a":{"dtype":"I8","order":"F"}}"#, data: 4),
    Case("key used twice", .malformed, #"{"a":{"dtype":"I8","dtype":"I8"}}"#, data: 4),
    Case("metadata is a string", .malformed, #"{"__metadata__":"x"}"#),
    Case("metadata is null", .malformed, #"{"__metadata__":null}"#),
    Case("metadata holds a number", .malformed, #"{"__metadata__":{"a":1}}"#),
    Case("metadata holds an object", .malformed, #"{"__metadata__":{"a":{}}}"#),
    Case("metadata key used twice", .malformed, #"{"__metadata__":{"a":"","a":""}}"#),
    Case("metadata used twice", .malformed, #"{"__metadata__":{},"__metadata__":{}}"#),
    Case(
      "deep arrays",
      .malformed,
      #"{"a":{"shape":"# + String(repeating: "[", count: 1_000_000)
    ),
    Case("deep objects", .malformed, String(repeating: #"{"a":"#, count: 1_000_000)),
    Case(
      "deep metadata",
      .malformed,
      #"{"__metadata__":{"a":"# + String(repeating: "[", count: 1_000_000)
    ),
  ]

  private static let numbers: [Case] = [
    Case("unknown dtype", .unsupportedType, dtype: #""F128""#),
    Case("dtype in lower case", .unsupportedType, dtype: #""f32""#),
    Case("dtype is a number", .malformed, dtype: "32"),
    Case("dtype is null", .malformed, dtype: "null"),
    Case("shape is a number", .malformed, shape: "1"),
    Case("shape is an object", .malformed, shape: "{}"),
    Case("negative size", .malformed, shape: "[-1]"),
    Case("negative zero", .malformed, shape: "[-0]"),
    Case("fractional size", .malformed, shape: "[1.0]"),
    Case("size with exponent", .malformed, shape: "[1e0]"),
    Case("size with leading zero", .malformed, shape: "[01]"),
    Case("size with plus", .malformed, shape: "[+1]"),
    Case("size in hexadecimal", .malformed, shape: "[0x1]"),
    Case("size is NaN", .malformed, shape: "[NaN]"),
    Case("size is Infinity", .malformed, shape: "[Infinity]"),
    Case("size is null", .malformed, shape: "[null]"),
    Case("size is true", .malformed, shape: "[true]"),
    Case("size is a string", .malformed, shape: #"["1"]"#),
    Case("size is an array", .malformed, shape: "[[1]]"),
    Case("size missing", .malformed, shape: "[1,]"),
    Case("size 2⁶³", .tooLarge, shape: "[9223372036854775808]"),
    Case("size of 1000 digits", .tooLarge, shape: "[1\(String(repeating: "0", count: 999))]"),
    Case("size that overflows in bits", .tooLarge, shape: "[9223372036854775807]"),
    Case("sizes that overflow", .tooLarge, shape: "[4294967296,4294967296]"),
    Case("sizes that overflow to 1", .tooLarge, shape: "[6148914691236517205,3,1]"),
    Case("sizes that overflow beside zero", .tooLarge, shape: "[0,4294967296,4294967296]"),
    Case("65 dimensions", .malformed, shape: "[1\(String(repeating: ",1", count: 64))]"),
    Case("offsets are a number", .malformed, offsets: "0"),
    Case("no offsets", .malformed, offsets: "[]"),
    Case("one offset", .malformed, offsets: "[0]"),
    Case("three offsets", .malformed, offsets: "[0,4,4]"),
    Case("negative offset", .malformed, offsets: "[-4,0]"),
    Case("fractional offset", .malformed, offsets: "[0,4.0]"),
    Case("offset 2⁶⁴ + 4", .tooLarge, offsets: "[0,18446744073709551620]"),
    Case("end before begin", .malformed, offsets: "[4,0]"),
    Case("span below the shape", .malformed, offsets: "[0,3]"),
    Case("span above the shape", .malformed, shape: "[]", offsets: "[0,5]"),
    Case("zero size with a span", .malformed, shape: "[0]", offsets: "[0,4]"),
    Case("half a byte", .malformed, dtype: #""F4""#, shape: "[7]", offsets: "[0,4]"),
    Case("end beyond the data", .truncated, shape: "[2]", offsets: "[0,8]"),
    Case("begin beyond the data", .truncated, offsets: "[4,8]"),
    Case("empty tensor beyond the data", .truncated, shape: "[0]", offsets: "[5,5]"),
    Case(
      "offsets at the end of Int",
      .truncated,
      offsets: "[9223372036854775803,9223372036854775807]"
    ),
  ]

  private static func entry(_ name: String, _ begin: Int, _ end: Int) -> String {
    #""\#(name)":{"dtype":"I8","shape":[\#(end - begin)],"data_offsets":[\#(begin),\#(end)]}"#
  }

  private static func layout(_ name: String, _ entries: String..., data: Int) -> Case {
    Case(name, .malformed, "{\(entries.joined(separator: ","))}", data: data)
  }

  private static let layouts: [Case] = [
    layout("data without tensors", data: 1),
    layout("bytes before the first tensor", entry("a", 1, 4), data: 4),
    layout("bytes after the last tensor", entry("a", 0, 4), data: 5),
    layout("a gap", entry("a", 0, 4), entry("b", 5, 8), data: 8),
    layout("an overlap", entry("a", 0, 4), entry("b", 3, 8), data: 8),
    layout("the same place twice", entry("a", 0, 4), entry("b", 0, 4), data: 4),
    layout("one inside the other", entry("a", 0, 8), entry("b", 2, 4), data: 8),
    layout("an empty tensor inside another", entry("a", 0, 4), entry("b", 2, 2), data: 4),
  ]

  @Test(arguments: [lengths, texts, structures, numbers, layouts].flatMap { $0 })
  func refuses(_ example: Case) throws {
    let folder = try TemporaryFolder()
    let path = try folder.file(example.bytes)
    do throws(TensorFileError) {
      _ = try SafetensorsFile(path: path)
      Issue.record("it was accepted")
    } catch {
      #expect(error.code == example.code, "\(error)")
      #expect(error.message.hasPrefix(path) && error.message.utf8.count < 2000)
    }
  }

  @Test func acceptsEmptyTensorsAtAnyBorder() throws {
    let folder = try TemporaryFolder()
    let entries = [
      Self.entry("c", 4, 4), Self.entry("b", 0, 4), Self.entry("a", 0, 0), Self.entry("d", 4, 4),
    ]
    let header = "{\(entries.joined(separator: ","))}"
    let file = try SafetensorsFile(path: folder.file(safetensors(header, dataCount: 4)))
    #expect(file.tensorNames == ["a", "b", "c", "d"])
  }
}
