import IntFlashAttention
import TensorFiles
import Testing

struct NpyFileTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
  }

  @Test(
    arguments: [ElementType.float32, .float16, .int8],
    [[], [0], [1], [7], [3, 0, 2], [2, 3, 5]]
  )
  func roundTrip(type: ElementType, shape: [Int]) throws {
    let values = (0..<shape.reduce(1, *)).map { Float($0) - 3 }
    let tensor = try Tensor(values, shape: shape, elementType: type)
    try NpyFile.write(tensor.view, to: folder.path())
    let back = try NpyFile.read(path: folder.path())
    #expect(back.elementType == type)
    #expect(back.shape == shape)
    #expect(back.copyFloats() == values)
    #expect(try (folder.bytes().count - tensor.byteCount) % 64 == 0)
  }

  @Test func writesWhatNumPyWrites() throws {
    let tensor = try Tensor([1, -2.5], shape: [2, 1])
    try NpyFile.write(tensor.view, to: folder.path())
    let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }"
    let prefix: [UInt8] = [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59, 1, 0, 118, 0]
    let header = Array((text + String(repeating: " ", count: 117 - text.utf8.count) + "\n").utf8)
    let data: [UInt8] = [0, 0, 0x80, 0x3F, 0, 0, 0x20, 0xC0]
    #expect(try folder.bytes() == prefix + header + data)
  }

  @Test func readsBinary64AsFloat32() throws {
    let header = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }")
    let data: [UInt8] = [0, 0, 0, 0, 0, 0, 0xF0, 0x3F, 0, 0, 0, 0, 0, 0, 0xF0, 0xFF]
    let tensor = try NpyFile.read(path: folder.file(header + data))
    #expect(tensor.elementType == .float32)
    #expect(tensor.copyFloats() == [1, -.infinity])
  }

  @Test func readsBooleansAsInt8() throws {
    let header = npy("{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }")
    let tensor = try NpyFile.read(path: folder.file(header + [1, 0, 1]))
    #expect(tensor.elementType == .int8)
    #expect(tensor.copyFloats() == [1, 0, 1])
  }

  @Test(arguments: [1, 2, 3] as [UInt8])
  func readsEveryVersionAndSpelling(version: UInt8) throws {
    for dictionary in [
      "{'descr': '|i1', 'fortran_order': False, 'shape': (2, 3), }",
      #"{"shape":(2,3,),"fortran_order":False,"descr":"|i1"}"#,
    ] {
      let bytes = npy(dictionary, version: (version, 0), dataCount: 6)
      let tensor = try NpyFile.read(path: folder.file(bytes))
      #expect(tensor.shape == [2, 3])
      #expect(tensor.copyFloats() == [0, 1, 2, 3, 4, 5])
    }
  }

  @Test(arguments: [ElementType.bfloat16, .float8, .int4])
  func refusesToWriteWhatNumPyDoesNotHave(type: ElementType) throws {
    let tensor = try Tensor(type, shape: [2])
    do throws(TensorFileError) {
      try NpyFile.write(tensor.view, to: folder.path())
      Issue.record("\(type) was written")
    } catch {
      #expect(error.code == .unsupportedType)
      #expect(error.message.contains(".safetensors"))
    }
    #expect(try folder.names == [])
  }

  @Test func refusesAShapeTooLongForTheHeader() throws {
    let tensor = try Tensor(.int8, shape: [Int](repeating: 1, count: 30_000))
    let code = failureCode { () throws(TensorFileError) in
      try NpyFile.write(tensor.view, to: folder.path())
    }
    #expect(code == .tooLarge)
  }

  struct Case: CustomTestStringConvertible, Sendable {
    let testDescription: String
    let bytes: [UInt8]
    let code: TensorFileError.Code

    init(_ name: String, _ code: TensorFileError.Code, _ bytes: [UInt8]) {
      testDescription = name
      self.bytes = bytes
      self.code = code
    }

    /// A file of 4 bytes with this dictionary.
    init(_ name: String, _ code: TensorFileError.Code, text: String) {
      self.init(name, code, npy(text, dataCount: 4))
    }

    /// A file of 4 bytes with these values.
    init(
      _ name: String,
      _ code: TensorFileError.Code,
      descr: String = "'<f4'",
      order: String = "False",
      shape: String = "(1,)"
    ) {
      self.init(
        name,
        code,
        text: "{'descr': \(descr), 'fortran_order': \(order), 'shape': \(shape), }"
      )
    }
  }

  private static let good = "{'descr': '|i1', 'fortran_order': False, 'shape': (4,), }"

  private static let frames: [Case] = [
    Case("empty file", .truncated, []),
    Case("magic cut", .truncated, [0x93, 0x4E]),
    Case("only the magic", .truncated, [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59]),
    Case("no length", .truncated, [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59, 1, 0, 1]),
    Case("wrong magic", .malformed, [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x5A] + npy(good).dropFirst(6)),
    Case("a zip file", .malformed, Array("PK\u{03}\u{04}".utf8) + npy(good)),
    Case("version 0.0", .malformed, npy(good, version: (0, 0), dataCount: 4)),
    Case("version 1.1", .malformed, npy(good, version: (1, 1), dataCount: 4)),
    Case("version 4.0", .malformed, npy(good, version: (4, 0), dataCount: 4)),
    Case("length 0", .malformed, [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59, 1, 0, 0, 0]),
    Case(
      "length beyond the file",
      .truncated,
      [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59, 1, 0, 3, 0, 0x7B, 0x7D]
    ),
    Case(
      "length of 4 GB",
      .tooLarge,
      [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59, 2, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x7B, 0x7D]
    ),
    Case(
      "no new line",
      .malformed,
      [0x93, 0x4E, 0x55, 0x4D, 0x50, 0x59, 1, 0, 2, 0, 0x7B, 0x7D]
    ),
    Case("no data", .truncated, npy(good)),
    Case("data cut", .truncated, npy(good, dataCount: 3)),
    Case("bytes after the data", .malformed, npy(good, dataCount: 5)),
  ]

  private static let dictionaries: [Case] = [
    Case("empty dictionary", .malformed, text: "{}"),
    Case("not a dictionary", .malformed, text: "['descr']"),
    Case("not closed", .malformed, text: "{'descr': '|i1', "),
    Case("no descr", .malformed, text: "{'fortran_order': False, 'shape': (4,), }"),
    Case("no order", .malformed, text: "{'descr': '|i1', 'shape': (4,), }"),
    Case("no shape", .malformed, text: "{'descr': '|i1', 'fortran_order': False, }"),
    Case("another key", .malformed, text: good.dropLast() + "'x': 1}"),
    Case("key used twice", .malformed, text: good.dropLast() + "'shape': (4,)}"),
    Case("text after it", .malformed, text: good + "x"),
    Case("a call", .malformed, text: "{'descr': open('/etc/passwd')}"),
    Case("key not closed", .malformed, text: "{'descr"),
    Case("mixed quotes", .malformed, text: "{'descr\": '|i1'}"),
    Case("escape in a string", .malformed, text: #"{'d\x65scr': '|i1'}"#),
    Case("not ASCII", .malformed, text: "{'déscr': '|i1'}"),
    Case("double comma", .malformed, text: "{'descr': '|i1',, }"),
    Case("big-endian", .unsupportedType, descr: "'>f4'"),
    Case("unknown type", .unsupportedType, descr: "'<i8'"),
    Case("Python objects", .unsupportedType, descr: "'|O'"),
    Case("structured type", .unsupportedType, descr: "[('a', '<f4')]"),
    Case("type is a number", .malformed, descr: "4"),
    Case("Fortran order", .unsupportedLayout, order: "True"),
    Case("order in lower case", .malformed, order: "false"),
    Case("order is a number", .malformed, order: "0"),
    Case("shape is a number", .malformed, shape: "1"),
    Case("shape is a list", .malformed, shape: "[1]"),
    Case("shape in brackets only", .malformed, shape: "(1)"),
    Case("shape of commas", .malformed, shape: "(,)"),
    Case("shape not closed", .malformed, shape: "(1,"),
    Case("nested shape", .malformed, shape: "((1,),)"),
    Case("negative size", .malformed, shape: "(-1,)"),
    Case("fractional size", .malformed, shape: "(1.0,)"),
    Case("size with suffix", .malformed, shape: "(1L,)"),
    Case("size with leading zero", .malformed, shape: "(01,)"),
    Case("size with underscore", .malformed, shape: "(1_0,)"),
    Case("size 2⁶³", .tooLarge, shape: "(9223372036854775808,)"),
    Case("sizes that overflow", .tooLarge, shape: "(4294967296, 4294967296)"),
    Case("sizes that overflow beside zero", .tooLarge, shape: "(0, 4294967296, 4294967296)"),
    Case("65 dimensions", .malformed, shape: "(\(String(repeating: "1,", count: 65)))"),
    Case("too many elements", .truncated, shape: "(1000000000000,)"),
    Case("too few elements", .malformed, shape: "(0,)"),
  ]

  @Test(arguments: frames + dictionaries)
  func refuses(_ example: Case) throws {
    let path = try folder.file(example.bytes)
    do throws(TensorFileError) {
      _ = try NpyFile.read(path: path)
      Issue.record("it was accepted")
    } catch {
      #expect(error.code == example.code, "\(error)")
      #expect(error.message.hasPrefix(path))
    }
  }

  @Test func refusesWhatCannotBeOpened() {
    let path = folder.path("missing")
    let code = failureCode { () throws(TensorFileError) in _ = try NpyFile.read(path: path) }
    #expect(code == .cannotOpen)
  }
}
