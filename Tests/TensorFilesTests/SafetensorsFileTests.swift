import IntFlashAttention
import TensorFiles
import Testing

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

struct SafetensorsFileTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
  }

  @Test func readsTheBytesOfTheSpecification() throws {
    // 8 bytes of length, a header that is padded with a space, the data.
    let header = #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#
    #expect(header.utf8.count == 54)
    let bytes: [UInt8] =
      [56, 0, 0, 0, 0, 0, 0, 0] + Array((header + "  ").utf8)
      + [0x00, 0x00, 0x80, 0x3F, 0x00, 0x00, 0x20, 0xC0]
    let file = try SafetensorsFile(path: folder.file(bytes))
    #expect(file.tensorNames == ["a"])
    #expect(file.metadata == [:])
    let entry = try file.entry("a")
    #expect(entry.name == "a" && entry.dtype == "F32" && entry.shape == [2])
    #expect(entry.byteCount == 8)
    let tensor = try file.tensor("a")
    #expect(tensor.elementType == .float32)
    #expect(tensor.shape == [2])
    #expect(tensor.copyFloats() == [1, -2.5])
  }

  @Test func readsBytesInMemoryAsAFile() throws {
    let header = #"{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#
    let bytes = safetensors(header, dataCount: 2)
    let file = try SafetensorsFile(bytes: bytes.span, name: "memory")
    #expect(file.path == "memory")
    let expected = try SafetensorsFile(path: folder.file(bytes)).tensor("a").copyFloats()
    #expect(try file.tensor("a").copyFloats() == expected)
    for count in [0, 7, bytes.count - 1] {
      do throws(TensorFileError) {
        _ = try SafetensorsFile(bytes: bytes.span.extracting(0..<count), name: "memory")
        Issue.record("\(count) bytes are not the file")
      } catch {
        #expect(error.code == .truncated)
        #expect(error.message.hasPrefix("memory: "))
      }
    }
  }

  @Test func readsBlanksEscapesAndAnyOrder() throws {
    let header = #"""
      { "\u0062\ud83d\ude00\/\n" : { "data_offsets" : [ 2 , 4 ] , "shape" : [ 2 ] , "dtype" : "I8" } ,
        "__metadata__" : { "k\"\\" : "é" , "" : "" } , "a" :
        {"dtype":"F8_E4M3","shape":[1,2],"data_offsets":[0,2]} }
      """#
    let file = try SafetensorsFile(
      path: folder.file(safetensors(header.drop { $0 == " " } + "\r\n\t ", dataCount: 4))
    )
    #expect(file.tensorNames == ["a", "b😀/\n"])
    #expect(file.metadata == ["k\"\\": "é", "": ""])
    #expect(try file.tensor("b😀/\n").copyFloats() == [2, 3])
    #expect(try file.tensor("a").elementType == .float8)
  }

  @Test func namesWhatIsMissingAndWhatThereIs() throws {
    let header = #"{"q":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}"#
    let path = try folder.file(safetensors(header))
    let file = try SafetensorsFile(path: path)
    do throws(TensorFileError) {
      _ = try file.entry("k\u{1B}")
      Issue.record("there is no such tensor")
    } catch {
      #expect(error.code == .unknownTensor)
      #expect(error.path == path)
      #expect(error.description == "\(path): no tensor \"k\\u{1B}\"; there is \"q\"")
    }
    let empty = try SafetensorsFile(path: folder.file(safetensors("{}")))
    #expect(empty.tensorNames == [])
    #expect(
      failureCode { () throws(TensorFileError) in _ = try empty.tensor("q") } == .unknownTensor
    )
  }

  @Test func keepsLargeNumbersExactly() throws {
    // 2⁵³ + 1 has no binary64; the tensor is empty, so nothing need be stored.
    let header = #"{"a":{"dtype":"F32","shape":[0,9007199254740993],"data_offsets":[0,0]}}"#
    let file = try SafetensorsFile(path: folder.file(safetensors(header)))
    #expect(try file.entry("a").shape == [0, 9_007_199_254_740_993])
    let tensor = try file.tensor("a")
    #expect(tensor.view.count == 0)
    #expect(tensor.copyFloats() == [])
  }

  @Test func roundsBinary64ToFloat32() throws {
    let values = [1.0, -0.1, 1e300, 1e-300, .nan]
    let header = #"{"a":{"dtype":"F64","shape":[5],"data_offsets":[0,40]}}"#
    let data = values.flatMap { value in
      (0..<8).map { UInt8(truncatingIfNeeded: value.bitPattern >> (8 * $0)) }
    }
    let file = try SafetensorsFile(path: folder.file(safetensors(header) + data))
    let tensor = try file.tensor("a")
    #expect(tensor.elementType == .float32)
    #expect(tensor.copyFloats().map(\.bitPattern) == values.map { Float($0).bitPattern })
  }

  @Test func readsBooleansAsInt8() throws {
    let header = #"{"a":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}}"#
    let file = try SafetensorsFile(path: folder.file(safetensors(header) + [1, 0, 1]))
    let tensor = try file.tensor("a")
    #expect(tensor.elementType == .int8)
    #expect(tensor.copyFloats() == [1, 0, 1])
  }

  @Test(arguments: [("U8", 8), ("F8_E5M2", 8), ("I16", 16), ("C64", 64), ("F4", 4)])
  func refusesTypesThatItCannotHold(dtype: String, bitWidth: Int) throws {
    let header = #"{"a":{"dtype":"\#(dtype)","shape":[2],"data_offsets":[0,\#(bitWidth / 4)]}}"#
    let path = try folder.file(safetensors(header, dataCount: bitWidth / 4))
    let file = try SafetensorsFile(path: path)
    #expect(try file.entry("a").dtype == dtype)
    do throws(TensorFileError) {
      _ = try file.tensor("a")
      Issue.record("\(dtype) has no element type")
    } catch {
      #expect(error.code == .unsupportedType)
      #expect(error.message.contains(dtype) && error.message.contains("BF16"))
    }
  }

  @Test func readsPackedIntegers() throws {
    let header = #"{"a":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}}"#
    let bytes = safetensors(header) + [0x21, 0x03, 0xF8, 0x07]
    let file = try SafetensorsFile(path: folder.file(bytes))
    let tensor = try file.packedInt4Tensor("a", shape: [2, 3])
    #expect(tensor.elementType == .int4)
    #expect(tensor.copyFloats() == [1, 2, 3, -8, -1, 7])
    #expect(try file.packedInt4Tensor("a", shape: [2, 4]).copyFloats().count == 8)
    for shape in [[], [4], [2, 2], [2, 5], [1, 2, 3], [-2, 3], [2, -3], [2, .max]] {
      let code = failureCode { () throws(TensorFileError) in
        _ = try file.packedInt4Tensor("a", shape: shape)
      }
      #expect(code == .shapeMismatch, "\(shape)")
    }
  }

  @Test func packedIntegersMustBeBytes() throws {
    let header = #"{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#
    let file = try SafetensorsFile(path: folder.file(safetensors(header, dataCount: 1)))
    let code = failureCode { () throws(TensorFileError) in
      _ = try file.packedInt4Tensor("a", shape: [2])
    }
    #expect(code == .unsupportedType)
  }

  @Test func readsFromAPipe() throws {
    let header = #"{"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]}}"#
    let bytes = safetensors(header, dataCount: 3)
    var ends: [Int32] = [0, 0]
    try #require(unsafe pipe(&ends) == 0)
    defer { close(ends[0]) }
    #expect(unsafe write(ends[1], bytes, bytes.count) == bytes.count)
    close(ends[1])
    let file = try SafetensorsFile(path: "/dev/fd/\(ends[0])")
    #expect(try file.tensor("a").copyFloats() == [0, 1, 2])
  }

  @Test func refusesWhatCannotBeOpened() throws {
    let missing = folder.path("missing")
    let subfolder = try folder.folder("folder")
    for path in ["", missing, subfolder] {
      let code = failureCode { () throws(TensorFileError) in _ = try SafetensorsFile(path: path) }
      #expect(code == .cannotOpen, "\(path)")
    }
  }
}
