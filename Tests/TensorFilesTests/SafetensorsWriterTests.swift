import IntFlashAttention
import TensorFiles
import Testing

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

struct SafetensorsWriterTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
  }

  private static let shapes = [[], [0], [1], [7], [3, 0, 2], [2, 3, 5], [1, 1, 1, 1, 6]]

  private func values(_ shape: [Int]) -> [Float] {
    (0..<shape.reduce(1, *)).map { Float($0 % 13 - 6) }
  }

  private func add(
    _ name: String,
    _ values: [Float],
    _ shape: [Int],
    _ type: ElementType,
    to writer: inout SafetensorsWriter
  ) throws {
    let tensor = try Tensor(values, shape: shape, elementType: type)
    writer.add(name, tensor.view)
  }

  /// The tensor "t" of the file.
  private func tensor(_ type: ElementType, shape: [Int]) throws -> Tensor {
    let file = try SafetensorsFile(path: folder.path())
    if type == .int4 { return try file.packedInt4Tensor("t", shape: shape) }
    return try file.tensor("t")
  }

  @Test(arguments: ElementType.allCases, shapes)
  func roundTrip(type: ElementType, shape: [Int]) throws {
    let tensor = try Tensor(values(shape), shape: shape, elementType: type)
    var writer = SafetensorsWriter()
    writer.add("t", tensor.view)
    try writer.write(to: folder.path())
    let back = try self.tensor(type, shape: shape)
    #expect(back.elementType == type)
    #expect(back.shape == shape)
    #expect(back.copyFloats() == tensor.copyFloats())
  }

  @Test func mapsLargeFiles() throws {
    let tensor = try Tensor((0..<100_000).map { Float($0) }, shape: [100, 1000])
    var writer = SafetensorsWriter()
    writer.add("t", tensor.view)
    try writer.write(to: folder.path())
    let file = try SafetensorsFile(path: folder.path())
    // The mapping keeps what was opened when the file is replaced.
    try SafetensorsWriter().write(to: folder.path())
    #expect(try file.tensor("t").copyFloats() == tensor.copyFloats())
    #expect(try SafetensorsFile(path: folder.path()).tensorNames == [])
  }

  @Test func writesWhatTheOfficialWriterWrites() throws {
    var writer = SafetensorsWriter(metadata: ["k": "v"])
    try add("a", [7], [1], .int8, to: &writer)
    try add("e\"\u{01}é/\u{7F}", [], [0, 3], .float16, to: &writer)
    try add("u", [1, 2, 3], [3], .int4, to: &writer)
    try add("c", [1], [], .float16, to: &writer)
    try add("b", [1], [1], .float32, to: &writer)
    try writer.write(to: folder.path())
    // Made with Python's safetensors 0.8.0 from the same arrays ("u" as uint8).
    let header =
      #"{"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#
      + #""c":{"dtype":"F16","shape":[],"data_offsets":[4,6]},"#
      + #""e\"\u0001é/\#u{7F}":{"dtype":"F16","shape":[0,3],"data_offsets":[6,6]},"#
      + #""a":{"dtype":"I8","shape":[1],"data_offsets":[6,7]},"#
      + #""u":{"dtype":"U8","shape":[2],"data_offsets":[7,9]}}  "#
    let data: [UInt8] = [0, 0, 0x80, 0x3F, 0, 0x3C, 7, 0x21, 0x03]
    #expect(try folder.bytes() == safetensors(header) + data)
  }

  @Test func headerIsPaddedToAMultipleOfEight() throws {
    for length in 0..<9 {
      let writer = SafetensorsWriter(metadata: ["k": String(repeating: "x", count: length)])
      try writer.write(to: folder.path())
      let bytes = try folder.bytes()
      #expect(bytes.count % 8 == 0 && Int(bytes[0]) == bytes.count - 8)
    }
  }

  @Test func orderOfAddingDoesNotShow() throws {
    let tensors = ["q": ElementType.float32, "k": .int8, "v": .bfloat16, "é": .int8, "z": .float32]
    let metadata = Dictionary(uniqueKeysWithValues: (0..<50).map { ("key\($0)", "\($0)") })
    var contents: Set<[UInt8]> = []
    for names in [
      ["q", "k", "v", "é", "z"], ["z", "é", "v", "k", "q"], ["v", "z", "q", "é", "k"],
    ] {
      var writer = SafetensorsWriter(metadata: metadata)
      for name in names {
        try add(name, [1, 2], [2], tensors[name] ?? .int8, to: &writer)
      }
      try writer.write(to: folder.path())
      contents.insert(try folder.bytes())
    }
    #expect(contents.count == 1)
    let file = try SafetensorsFile(path: folder.path())
    #expect(file.metadata == metadata)
    #expect(file.tensorNames == ["k", "q", "v", "z", "é"])
  }

  @Test func unusedHalfBytesDoNotShow() throws {
    var tensor = try Tensor([1, 2, 3], shape: [1, 3], elementType: .int4)
    var writer = SafetensorsWriter()
    writer.add("clean", tensor.view)
    var bytes = tensor.mutableBytes
    bytes.storeBytes(of: 0xF3, toByteOffset: 1, as: UInt8.self)
    writer.add("dirty", tensor.view)
    try writer.write(to: folder.path())
    #expect(try folder.bytes().suffix(4) == [0x21, 0x03, 0x21, 0x03])
  }

  @Test(arguments: ElementType.allCases)
  func writesStridedViewsInRowMajorOrder(type: ElementType) throws {
    let tensor = try Tensor(values([2, 3, 5]), shape: [2, 3, 5], elementType: type)
    let view = try tensor.view.permuted([2, 0, 1])
    var writer = SafetensorsWriter()
    writer.add("t", view)
    try writer.write(to: folder.path())
    let back = try self.tensor(type, shape: [5, 2, 3])
    #expect(back.shape == [5, 2, 3])
    #expect(back.copyFloats() == view.copyFloats())
  }

  @Test func writesBroadcastAndReversedViews() throws {
    let values: [Float] = [1, 2, 3]
    var writer = SafetensorsWriter()
    writer.add("broadcast", try TensorView(values.span, shape: [2, 3], strides: [0, 1]))
    writer.add("reversed", try TensorView(values.span, shape: [3], strides: [-1], offset: 2))
    try writer.write(to: folder.path())
    let file = try SafetensorsFile(path: folder.path())
    #expect(try file.tensor("broadcast").copyFloats() == [1, 2, 3, 1, 2, 3])
    #expect(try file.tensor("reversed").copyFloats() == [3, 2, 1])
  }

  @Test(arguments: ["__metadata__", "a"])
  func refusesNames(name: String) throws {
    try folder.file([1, 2, 3])
    var writer = SafetensorsWriter()
    let tensor = try Tensor(.int8, shape: [1])
    writer.add("a", tensor.view)
    writer.add(name, tensor.view)
    let code = failureCode { () throws(TensorFileError) in try writer.write(to: folder.path()) }
    #expect(code == .invalidName)
    #expect(try folder.bytes() == [1, 2, 3])
  }

  @Test func leavesNothingBehindWhereItCannotWrite() throws {
    let subfolder = try folder.folder("folder")
    for path in ["", folder.path("missing/file"), subfolder] {
      let code = failureCode { () throws(TensorFileError) in
        try SafetensorsWriter().write(to: path)
      }
      #expect(code == .cannotWrite, "\(path)")
    }
    #expect(try folder.names == ["folder"])
  }

  @Test func replacesAFileAndLeavesNothingElse() throws {
    try folder.file([1, 2, 3])
    try SafetensorsWriter().write(to: folder.path())
    #expect(try folder.bytes() == safetensors("{}      "))
    #expect(try folder.names == ["file"])
  }

  @Test func writesTheLongestName() throws {
    let name = String(repeating: "x", count: 255)
    try SafetensorsWriter().write(to: folder.path(name))
    #expect(try folder.names == [name])
  }

  @Test(.enabled(if: FileManager.default.fileExists(atPath: "/dev/full")))
  func reportsAFullDevice() {
    let code = failureCode { () throws(TensorFileError) in
      try SafetensorsWriter().write(to: "/dev/full")
    }
    #expect(code == .cannotWrite)
  }
}
